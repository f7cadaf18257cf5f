"""TLS: contexts, names, sessions and tickets that workers and machines share."""
