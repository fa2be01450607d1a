"""The AWS provider's schema, read from the types that the CDK for Terraform has of it.

Terraform itself has it from the provider's program only, which comes from no registry of packages."""

import ast
import functools
import re
import zipfile

META = {"count", "depends_on", "for_each", "lifecycle", "provider", "provisioner"}


class Provider:
    def __init__(self, wheel):
        self.archive = zipfile.ZipFile(wheel)

    @functools.cache
    def resource(self, address):
        """The type of `aws_eip` or `data.aws_region`, or None."""
        folder = address.replace("data.aws_", "data_aws_").removeprefix("aws_")
        try:
            source = self.archive.read(f"cdktf_cdktf_provider_aws/{folder}/__init__.py")
        except KeyError:
            return None
        classes = {c.name: c for c in ast.parse(source).body if isinstance(c, ast.ClassDef)}
        return Type(classes, next(c for c in classes.values() if _is_resource(c)))


def _is_resource(c):
    return any(re.search(r"\.Terraform(Resource|DataSource)$", ast.unparse(base)) for base in c.bases)


def _is_property(f):
    # What ends with _input is CDK's own.
    return any("property" in ast.unparse(d) for d in f.decorator_list) and not f.name.endswith("_input")


class Type:
    """A resource's type, or that of a block in it."""

    def __init__(self, classes, c):
        self.classes = classes
        methods = [f for f in c.body if isinstance(f, ast.FunctionDef)]
        init = next(f for f in methods if f.name == "__init__")
        self.arguments = {a.arg: ast.unparse(a.annotation) for a in init.args.kwonlyargs}
        self.attributes = {f.name for f in methods if _is_property(f)} | set(self.arguments)

    def faults(self, body, where):
        """What of a block's body, as hcl2 reads it, the type does not have or lacks."""
        body = {key: value for key, value in body.items() if not key.startswith("__")}
        names = set(body) - META
        for name in sorted(names - set(self.arguments)):
            yield f"{where}: there is no {name}"
        required = {n for n, a in self.arguments.items() if "Optional" not in a} - META
        # CDK's own: who holds the resource, and its name there.
        for name in sorted(required - names - {"scope", "id_"}):
            yield f"{where}: {name} is missing"
        for name in sorted(names & set(self.arguments)):
            nested = self.block(name)
            for inner in body[name] if nested else []:
                if isinstance(inner, dict):
                    yield from nested.faults(inner, f"{where}.{name}")
                else:
                    yield f"{where}: {name} is a block"

    def block(self, name):
        """The type of a nested block, or None for a plain argument."""
        found = re.findall(r"\b[A-Z]\w+\b", self.arguments[name])
        return next((Type(self.classes, self.classes[n]) for n in found if n in self.classes), None)
