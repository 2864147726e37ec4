"""Reports for people: of a finished run, of data that were inspected, of requests that drift."""
