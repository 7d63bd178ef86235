"""Contracts that plug-ins implement, and the records that pass between the parts."""
