"""The paper's tables: recorded results in, tables that people read out; only means and tests are computed here."""
