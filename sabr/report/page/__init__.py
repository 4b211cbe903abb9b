"""The report: one page that says which claims hold, shows tables and figures, and tells how they were made."""
