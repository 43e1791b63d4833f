"""Metrics, configuration and data -> tables and pages for people."""
