//! Users and groups by name or number, from `/etc/passwd` and `/etc/group`.
//!
//! Names that only NSS knows (LDAP, sssd) are not looked up: that would load foreign libraries into
//! a process that holds secrets. Their numbers can always be written.

use std::path::Path;

use crate::config::field::Field;

/// A user id: a number, or a name in `/etc/passwd`.
pub(super) fn user(field: &Field) -> Option<u32> {
    id(field, "user", "/etc/passwd")
}

/// A group id: a number, or a name in `/etc/group`.
pub(super) fn group(field: &Field) -> Option<u32> {
    id(field, "group", "/etc/group")
}

fn id(field: &Field, what: &str, file: &str) -> Option<u32> {
    if let Some(number) = field.number() {
        return checked(field, what, u32::try_from(number).ok());
    }
    let name = field.text()?;
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return checked(field, what, name.parse().ok());
    }
    let remedy = format!("create it first, or write the {what}'s number; NSS is not asked");
    let accounts = (field.document().host.read)(Path::new(file)).unwrap_or_default();
    let found = id_of(&String::from_utf8_lossy(&accounts), &name);
    if found.is_none() {
        field.problem(format!("no {what} {} in {file}", field.quoted()), remedy);
    }
    found
}

/// `u32::MAX` means "leave it" to chown, so it is no id.
fn checked(field: &Field, what: &str, id: Option<u32>) -> Option<u32> {
    let id = id.filter(|id| *id != u32::MAX);
    if id.is_none() {
        let remedy = format!("write a {what}'s name or number");
        field.problem(format!("{} is not a {what} id", field.quoted()), remedy);
    }
    id
}

/// The third field of the line that `name` starts.
fn id_of(accounts: &str, name: &str) -> Option<u32> {
    let line = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
    line.filter(|fields| fields[0] == name).find_map(|fields| fields.get(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_third_field_of_the_line_with_exactly_that_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nshop:x:1007:1008::/:/bin/false\nbroken\n";
        assert_eq!(id_of(passwd, "shop"), Some(1007));
        assert_eq!(id_of(passwd, "sho"), None);
        assert_eq!(id_of(passwd, "broken"), None);
    }
}
