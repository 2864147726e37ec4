"""What a finished run leaves behind: an export, written, verified and loaded the same way everywhere."""
