"""What the operator wrote, turned into typed, validated, frozen settings."""
