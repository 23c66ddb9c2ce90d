//! What every process needs: config, logs, metrics, health, drain, a CPU pool
