"""Ways to learn what goes into a profile, one file a method."""
