//! Where a volume is: `HOST:/PATH`, as `mount` has it.

use std::fmt;
use std::str::FromStr;

use crate::limits::volume as limits;
use crate::net::dial;

/// A folder that a server exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Export {
    /// A name or an address, without brackets.
    pub(super) host: String,
    /// Absolute.
    pub(super) path: String,
}

impl Export {
    /// The folder above, and the last part of the path.
    pub(super) fn split(&self) -> Option<(Export, String)> {
        let (above, name) = self.path.trim_end_matches('/').rsplit_once('/')?;
        let above = Export {
            host: self.host.clone(),
            path: if above.is_empty() { "/" } else { above }.to_owned(),
        };
        Some((above, name.to_owned()))
    }
}

impl FromStr for Export {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not of the form HOST:/PATH, such as 100.64.0.3:/volume");
        if text.len() > limits::EXPORT {
            let most = limits::EXPORT;
            return Err(format!("the kernel takes exports of up to {most} bytes"));
        }
        let (host, path) = text.split_once(":/").ok_or_else(wrong)?;
        let bare = dial::bare(host);
        let bracketed = bare.len() < host.len();
        if bare.is_empty() || bare.contains('/') || bare.contains(':') != bracketed {
            return Err(wrong());
        }
        if path.split('/').any(|part| part == "..") || path.contains('\0') {
            return Err(format!("{text:?}: the path of an export has no '..'"));
        }
        Ok(Export {
            host: bare.to_owned(),
            path: format!("/{path}"),
        })
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.path)
        } else {
            write!(f, "{}:{}", self.host, self.path)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn both_families_and_names() {
        for (text, host, path) in [
            ("100.64.0.3:/volume", "100.64.0.3", "/volume"),
            ("[fd00:6e65:7464::3]:/", "fd00:6e65:7464::3", "/"),
            ("files.example:/a/b c", "files.example", "/a/b c"),
        ] {
            let export: Export = text.parse().unwrap();
            assert_eq!((&*export.host, &*export.path), (host, path));
            assert_eq!(export.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_export_is_told() {
        for text in [
            "",
            "/volume",
            "100.64.0.3",
            ":/x",
            "a:b",
            "fd00::3:/x",
            "[a]:/x",
            "a/b:/x",
        ] {
            let error = text.parse::<Export>().unwrap_err();
            assert!(error.contains("HOST:/PATH"), "{text}: {error}");
        }
        let long = format!("a:/{}", "x".repeat(limits::EXPORT));
        assert!(long.parse::<Export>().unwrap_err().contains("255"));
        assert!("a:/x/../y".parse::<Export>().unwrap_err().contains("'..'"));
    }

    #[test]
    fn the_last_part_is_split_off() {
        let split = |text: &str| {
            let export: Export = text.parse().unwrap();
            export
                .split()
                .map(|(above, name)| (above.to_string(), name))
        };
        assert_eq!(split("a:/x/y"), Some(("a:/x".into(), "y".into())));
        assert_eq!(split("a:/x/"), Some(("a:/".into(), "x".into())));
        assert_eq!(split("a:/"), None);
    }
}
