"""The demonstration: ``python -m uwgate.demo`` runs the router before two small nodes."""
