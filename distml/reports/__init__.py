"""Reports for people: the HTML report of a finished run and the figures that go with it."""
