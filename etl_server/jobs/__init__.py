"""A whole bucket through a transform: plan, ledger, engines, report."""
