//! The controller: drives the control state machine against real nodes and owns the metastore
