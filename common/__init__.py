"""What both jobs need: data types, the loop, input and output, projection, image formation, atoms, report."""
