"""Single particles in unknown orientations: from images to atoms."""
