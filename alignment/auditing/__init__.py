"""What a preference file teaches beside preferences: the checks of scripts/audit_comparisons.py."""
