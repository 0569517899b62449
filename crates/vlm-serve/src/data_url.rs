//! The bytes of an image in a `data:` URL (RFC 2397).

/// Decodes a `data:` URL. The media type is not used: the bytes tell which format they have.
///
/// # Errors
/// Another URL, or one that is not in base64. The message says what was expected.
pub(crate) fn decode(url: &str) -> Result<Vec<u8>, String> {
    const EXPECTED: &str = "send the image as a data URL, data:image/png;base64,…";
    let scheme = url.split(':').next().unwrap_or_default().to_ascii_lowercase();
    if matches!(scheme.as_str(), "http" | "https") {
        return Err(format!("this server does not load images from {scheme} URLs; {EXPECTED}"));
    }
    let (head, data) = match url.split_once(',') {
        Some((head, data)) if scheme == "data" => (head, data),
        _ => {
            let start = vlm_display::shorten(url, 20);
            return Err(format!("found a URL that begins with {start:?}; {EXPECTED}"));
        }
    };
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err(format!("the data URL is not in base64; {EXPECTED}"));
    }
    base64::decode(data).map_err(|e| format!("the data URL is not valid base64: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_base64_data_urls_are_decoded() {
        assert_eq!(decode("data:image/png;base64,aGk=").unwrap(), b"hi");
        assert_eq!(decode("DATA:;BASE64,aGk=").unwrap(), b"hi");
        for (url, part) in [
            ("https://example.org/cat.png", "does not load images from https URLs"),
            ("cat.png", "begins with \"cat.png\""),
            ("data:image/png,hi", "not in base64"),
            ("data:image/png;base64,a b", "not valid base64"),
        ] {
            let error = decode(url).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
