"""Networks: `registry` finds builders by name; every other module here holds builders (worker, replica)."""
