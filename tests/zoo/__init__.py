"""Networks that hide their weakness from attacks, and honest ones, each with the robust accuracy that an attack written for it leaves.

`defective.TABLE` and `honest.TABLE` hold them. `python -m benchmarks.evidence` audits them all.
"""
