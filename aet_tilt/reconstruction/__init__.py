"""A volume from a tilt series: one file for each family of methods, all over one projector."""
