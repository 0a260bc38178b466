//! The pods that a manifest's objects make, wherever Kubernetes' kinds keep their template. Pure.

use super::yaml::Node;

/// Where a pod's spec is, by kind: CronJob; Deployment and its like; PodTemplate.
const TEMPLATES: [&[&str]; 3] = [
    &["spec", "jobTemplate", "spec", "template", "spec"],
    &["spec", "template", "spec"],
    &["template", "spec"],
];

/// A pod as an object describes it.
pub(super) struct PodOf<'a> {
    /// The kind of the object.
    pub(super) kind: &'a str,
    /// The object's name, or how it begins.
    pub(super) name: &'a str,
    /// Its namespace, if it names one.
    pub(super) namespace: Option<&'a str>,
    /// The pod's spec.
    pub(super) spec: &'a Node,
}

/// The pods of a document; those of a `List` one by one.
pub(super) fn pods(document: &Node) -> Vec<PodOf<'_>> {
    let text = |path: &[&str]| document.at(path).and_then(Node::text);
    let kind = text(&["kind"]).unwrap_or_default();
    if kind.ends_with("List") {
        let items = document.get("items").map_or(&[][..], Node::elements);
        return items.iter().flat_map(pods).collect();
    }
    let template = TEMPLATES.iter().find_map(|path| document.at(path));
    let spec = match kind {
        "Pod" => document.get("spec"),
        _ => template,
    };
    let name = text(&["metadata", "name"]).or_else(|| text(&["metadata", "generateName"]));
    let pod = spec.map(|spec| PodOf {
        kind,
        name: name.unwrap_or("(no name)"),
        namespace: text(&["metadata", "namespace"]),
        spec,
    });
    pod.into_iter().collect()
}

impl PodOf<'_> {
    /// `Deployment shop/web`
    pub(super) fn label(&self) -> String {
        let namespace = self.namespace.map(|name| format!("{name}/")).unwrap_or_default();
        format!("{} {namespace}{}", self.kind, self.name)
    }

    /// Everything that runs in it, in the order of its start.
    pub(super) fn containers(&self) -> impl Iterator<Item = &Node> {
        let all = ["initContainers", "containers"].into_iter();
        all.filter_map(|key| self.spec.get(key)).flat_map(Node::elements)
    }

    /// The account it names.
    pub(super) fn service_account(&self) -> Option<&str> {
        let named = ["serviceAccountName", "serviceAccount"].into_iter();
        named.filter_map(|key| self.spec.get(key)?.text()).find(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml::documents;
    use super::*;

    #[test]
    fn every_kind_that_makes_pods_is_looked_into() {
        let spec = "serviceAccountName: web";
        let template = |indent: &str| format!("{indent}template:\n{indent}  spec: {{{spec}}}\n");
        let inner = template("    ");
        let kinds = [
            ("Pod", format!("spec: {{{spec}}}\n")),
            ("Deployment", format!("spec:\n{}", template("  "))),
            ("StatefulSet", format!("spec:\n{}", template("  "))),
            ("DaemonSet", format!("spec:\n{}", template("  "))),
            ("Job", format!("spec:\n{}", template("  "))),
            (
                "CronJob",
                format!(
                    "spec:\n  jobTemplate:\n    spec:\n  {}",
                    inner.replace("\n    ", "\n      ")
                ),
            ),
            ("PodTemplate", template("")),
        ];
        for (kind, body) in kinds {
            let text = format!("kind: {kind}\nmetadata: {{name: a, namespace: shop}}\n{body}");
            let documents = documents(&text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
            let pods = pods(&documents[0]);
            assert_eq!(pods.len(), 1, "{text}");
            assert_eq!(pods[0].service_account(), Some("web"), "{text}");
            assert_eq!(pods[0].label(), format!("{kind} shop/a"));
        }
        let list = format!(
            "kind: List\nitems:\n- kind: Service\n  spec: {{}}\n- kind: Pod\n  spec: {{{spec}}}\n"
        );
        assert_eq!(pods(&documents(&list).unwrap()[0]).len(), 1);
    }
}
