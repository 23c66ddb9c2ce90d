//! The artifact store: where table versions and releases lie
