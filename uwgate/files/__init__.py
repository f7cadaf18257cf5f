"""Files: opened below a directory and nowhere else, their media types, lists of directories."""
