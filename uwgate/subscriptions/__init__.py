"""Who serves which key: announcements of nodes, the table that they make, and who may announce."""
