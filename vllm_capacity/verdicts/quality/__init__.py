"""Problems of the telemetry, and by how much they can move which figures."""
