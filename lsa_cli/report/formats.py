"""The formats of a report: one entry a format, from which its option and its key in lsa.yaml come."""

# name: (what the option takes, help)
FORMATS = {
    "json": ("FILE|-", "The report; - writes it to stdout."),
    "md": ("FILE", "Markdown for a pull request."),
    "html": ("FILE", "One page with plots."),
    "junit": ("FILE.xml", "JUnit XML: a test case per limit, and one per class."),
    "sarif": ("FILE", "SARIF 2.1.0 for code scanning."),
    "gitlab": ("FILE.json", "GitLab code quality."),
    "openmetrics": ("FILE", "OpenMetrics text for Prometheus."),
    "card": ("FILE.md", "A section of a Hugging Face model card."),
    "badge": ("FILE.svg", "A badge with the robust accuracy."),
}
