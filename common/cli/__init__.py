"""What the command lines of the suite share: settings as options, progress, errors in one line, the device."""
