"""Evidence: the checks that ask if the numbers of an audit can be believed.

`preflight` and `usage` check before any attack. `examine` runs the checks of `network` and `attacks`, and the `stronger`
attack, on a `probe` of a few samples. `compare` reads what the audit measured. `decision` has the statistical rule and the verdict.
"""
