//! The date and time that a chat template may ask for, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A point in time by calendar and clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CivilTime {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// Days since 1 January 1970, a Thursday.
    days: u64,
    /// Since midnight.
    seconds: u64,
}

impl From<SystemTime> for CivilTime {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let days = since / 86_400;
        let (mut year, mut month, mut rest) = (1970, 0, days);
        while rest >= days_of_year(year) {
            rest -= days_of_year(year);
            year += 1;
        }
        while rest >= days_of_month(year, month) {
            rest -= days_of_month(year, month);
            month += 1;
        }
        Self { year, month, day: rest + 1, days, seconds: since % 86_400 }
    }
}

impl CivilTime {
    /// Python's `strftime` with its common codes; any other code stays as it is.
    pub(crate) fn format(&self, format: &str) -> String {
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let weekday = WEEKDAYS[(self.days % 7) as usize];
            match rest.next() {
                Some('Y') => text += &self.year.to_string(),
                Some('y') => text += &format!("{:02}", self.year % 100),
                Some('m') => text += &format!("{:02}", self.month + 1),
                Some('d') => text += &format!("{:02}", self.day),
                Some('B') => text += MONTHS[self.month],
                Some('b') => text += &MONTHS[self.month][..3],
                Some('A') => text += weekday,
                Some('a') => text += &weekday[..3],
                Some('H') => text += &format!("{:02}", self.seconds / 3600),
                Some('M') => text += &format!("{:02}", self.seconds / 60 % 60),
                Some('S') => text += &format!("{:02}", self.seconds % 60),
                Some('%') | None => text.push('%'),
                Some(other) => text.extend(['%', other]),
            }
        }
        text
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of_month(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_python() {
        // datetime.utcfromtimestamp(1709209805).strftime("%A %a %d %b %B %Y %y %m %H:%M:%S %%")
        let time = CivilTime::from(UNIX_EPOCH + Duration::from_secs(1_709_209_805));
        assert_eq!(
            time.format("%A %a %d %b %B %Y %y %m %H:%M:%S %% %q"),
            "Thursday Thu 29 Feb February 2024 24 02 12:30:05 % %q"
        );
    }
}
