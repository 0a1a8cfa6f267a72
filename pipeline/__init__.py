"""Raw event logs into decisions."""
