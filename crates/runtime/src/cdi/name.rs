//! Names of devices, `vendor.com/class=name`, and of what they consist of.

/// Letters, digits and `.-_`; begins with a letter, ends with a letter or a digit.
pub(super) fn is_vendor_or_class(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic()) && is_made_of(name, ".-_")
}

/// Letters, digits and `.-_:`; begins and ends with a letter or a digit.
pub(super) fn is_device(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric()) && is_made_of(name, ".-_:")
}

fn is_made_of(name: &str, others: &str) -> bool {
    name.ends_with(|last: char| last.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|one| one.is_ascii_alphanumeric() || others.contains(one))
}

/// `vendor.com/class` taken apart.
pub(super) fn kind(kind: &str) -> Option<(&str, &str)> {
    let (vendor, class) = kind.split_once('/')?;
    (is_vendor_or_class(vendor) && is_vendor_or_class(class)).then_some((vendor, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_a_vendor_and_a_class() {
        assert_eq!(kind("nvidia.com/gpu"), Some(("nvidia.com", "gpu")));
        assert_eq!(kind("a/b_c-d.e2"), Some(("a", "b_c-d.e2")));
        for bad in [
            "nvidia.com",
            "/gpu",
            "a/",
            "a/b/c",
            "1a/b",
            "a./b",
            "a b/c",
            "a/b,c",
            "",
        ] {
            assert_eq!(kind(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_devices_name_may_be_a_number_or_have_colons() {
        for good in ["0", "all", "GPU-1:2", "mig1.0"] {
            assert!(is_device(good), "{good:?}");
        }
        // No comma: the label joins names by it.
        for bad in ["", "-0", "0-", "a,b", "a=b", "a b"] {
            assert!(!is_device(bad), "{bad:?}");
        }
    }
}
