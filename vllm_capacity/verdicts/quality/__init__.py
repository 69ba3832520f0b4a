"""Problems of the telemetry, and by how much they can change which figures."""
