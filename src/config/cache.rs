//! `[cache]`, its rules and the broker's part of `[limits]`.

use crate::broker::settings::{CacheRule, CacheTimes, Limits, Settings};
use crate::config::document::Section;
use crate::config::sources::Sources;
use crate::domain::PathPattern;

pub(super) fn read(root: &Section, limits: &Section, sources: &Sources) -> Settings {
    let default = Settings::default();
    let section = root.section("cache");
    let defaults = times(&section, default.defaults);
    let negative_ttl = section.duration("negative_ttl", default.negative_ttl);
    let rules = section.sections("rules");
    let rules = rules.iter().filter_map(|section| rule(section, defaults, sources)).collect();
    section.finish();
    Settings { defaults, negative_ttl, rules, limits: read_limits(limits, default.limits) }
}

fn times(section: &Section, default: CacheTimes) -> CacheTimes {
    let times = CacheTimes {
        ttl: section.positive_duration("ttl", default.ttl),
        max_stale: section.positive_duration("max_stale", default.max_stale),
        overlap: section.get("overlap").and_then(|field| field.duration()).or(default.overlap),
    };
    if times.ttl > times.max_stale {
        section.problem_at(
            "ttl",
            "ttl is longer than max_stale, so a value would end while it is fresh",
            "raise max_stale (the total age at which a value is no longer served) or lower ttl",
        );
    }
    times
}

fn rule(section: &Section, defaults: CacheTimes, sources: &Sources) -> Option<CacheRule> {
    let source_field = section.get("source");
    let source = source_field.as_ref().and_then(|field| sources.named(field));
    let path =
        section.require("path", "name the API paths it is for: path = \"secret/data/shop/*\"");
    let path = path.and_then(|field| sources.pattern(&field, source.as_ref()));
    if path.as_ref().is_some_and(PathPattern::has_placeholders) {
        let message = "a cache rule holds for everybody, so it has no caller's names in it";
        section.problem_at("path", message, "write '*' in place of the segment");
    }
    let times = times(section, defaults);
    section.finish();
    if source_field.is_some() && source.is_none() {
        return None;
    }
    Some(CacheRule { source, path: path?, times })
}

fn read_limits(section: &Section, default: Limits) -> Limits {
    let bytes = |name, default: usize| {
        usize::try_from(section.size(name, default as u64)).unwrap_or(usize::MAX)
    };
    let count = |name, default: usize| {
        section.count(name, u32::try_from(default).unwrap_or(u32::MAX)) as usize
    };
    let limits = Limits {
        entries: count("entries", default.entries),
        bytes: bytes("bytes", default.bytes),
        value_bytes: bytes("value_bytes", default.value_bytes),
        local_leases: count("local_leases", default.local_leases),
        upstream_in_flight: count("upstream_in_flight", default.upstream_in_flight),
        upstream_per_second: section.count("upstream_per_second", default.upstream_per_second),
    };
    if limits.value_bytes > limits.bytes {
        let message = "value_bytes is more than bytes, so one value could not be cached at all";
        section.problem_at("value_bytes", message, "lower value_bytes or raise bytes");
    }
    limits
}
