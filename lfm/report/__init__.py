"""Metrics, configuration and data -> tables and pages for people.

Plain tables in `text`, the data report in `data`; a run's page in `page`, which is made of figures (`figures_*`,
each from values to a figure and the rows behind it), published results and small statistics.
"""

from lfm.report.data import data_page, data_summary, headline, picture
from lfm.report.text import COLUMNS, histogram, percent, table

__all__ = ["COLUMNS", "data_page", "data_summary", "headline", "histogram", "percent", "picture", "table"]
