"""The real capture and apply loops over in-memory fakes of source, log and target: one seed is one random interleaving."""
