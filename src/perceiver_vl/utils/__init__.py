"""What every floor uses: errors, files, the console, processes."""
