"""What operators and their tools observe: events, metrics, task traces, scrape targets."""
