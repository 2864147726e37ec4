"""The same work done without distml, to be measured beside it. Each prints one JSON line at the end."""
