//! The page's text: HTML with its style inside, for light and dark screens.

use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use vlm_display::Table;

use super::HeldOutSection;

/// What the page shows.
#[derive(Debug, Serialize)]
pub(super) struct Page<'a> {
    /// Name of the run.
    pub name: &'a str,
    /// How the run ended.
    pub status: &'a str,
    /// Labels and values of the large numbers at the top.
    pub tiles: Vec<(String, String)>,
    pub charts: Vec<Chart>,
    pub held_out: Option<&'a HeldOutSection>,
    pub samples: Option<Table>,
    pub rejected: Option<Table>,
    pub summary: Table,
    pub settings: Table,
}

/// A curve with its caption.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    pub title: &'static str,
    pub unit: &'static str,
    pub svg: String,
}

impl Page<'_> {
    /// The page as HTML.
    pub fn to_html(&self) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_trim_blocks(true);
        environment.render_str(include_str!("page.html.jinja"), self)
    }
}
