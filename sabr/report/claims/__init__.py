"""The paper's claims, each checked on recorded results: it holds, it does not, or it cannot be told."""
