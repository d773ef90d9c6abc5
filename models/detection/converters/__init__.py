"""The layouts of published weights."""
