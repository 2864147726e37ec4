"""Reports: of a finished run, of a data inspection, and of drift of served requests."""
