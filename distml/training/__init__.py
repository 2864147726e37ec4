"""Distributed training of one run: driver side (launch, observers) and worker side (step, epochs)."""
