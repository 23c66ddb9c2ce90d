//! Cluster map, placement and the control state machine, as pure functions
