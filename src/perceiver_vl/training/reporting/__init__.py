"""What people read of a run: its report, model card, live monitor, diagnostics and examples."""
