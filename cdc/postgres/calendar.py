"""Days and dates of the proleptic Gregorian calendar, without datetime's bounds (years 1 to 9999).

Years are astronomical: 0 is 1 BC. `days_of` and `date_of` are inverses for every year that Postgres can hold.
"""

from __future__ import annotations

EPOCH_2000_DAYS = 10_957  # from 1970-01-01 to 2000-01-01, Postgres' own epoch
EPOCH_2000_US = EPOCH_2000_DAYS * 86_400_000_000
DAY_US = 86_400_000_000


def days_of(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01."""
    # Years are counted from March, so that the leap day is the last day of its year.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719_469


def date_of(days: int) -> tuple[int, int, int]:
    """Year, month and day of `days` since 1970-01-01."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    return era * 400 + year_of_era + (month > 9), month + 3 if month < 10 else month - 9, day
