"""What imports torch to learn or to score; the map is in alignment/__init__.py."""
