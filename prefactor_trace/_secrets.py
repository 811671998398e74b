r"""What looks like a secret: names of fields, and shapes of text. Pure: text in, places out.

Two steps, because nearly all text is clean. `Words.suspect` asks one question of a whole payload: is there
anything in it that could be a secret? Its pattern is a little wider than the truth, never narrower, and is searched
by the regex engine in Rust that pydantic brings: its time is linear in the text, 2 ns a byte, where `re` takes
hundreds. Only what it suspects is looked at closely, by `Words.name` and `Words.find`, in windows around it.

Names are taken word by word (`openaiApiKey`, `X-API-Key` and `OPENAI_API_KEY` end in "api key"), so that
`max_tokens`, `author` and `secretary` are none. Shapes are those of `_SHAPES`, JWTs, bearer and basic credentials,
passwords in URLs, private keys, and `name=value`, `name: value` inside longer text where the name is sensitive.

Patterns for `re` begin at a literal and go on with one run that has nothing behind it, or is bounded: no input makes
them turn back.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_URL_SAFE = "[A-Za-z0-9_-]"
_LETTERS = "[A-Za-z0-9]"
_HEX = "[0-9a-fA-F]"


class _Shape(NamedTuple):
    """Text that begins with *head* (a pattern with a literal in front) and goes on with *least* of *body* or more."""

    kind: str
    head: str
    body: str
    least: int


# Prefixes as the providers document them; the lengths are shorter than the real ones, so that a new one still fits.
_SHAPES = tuple(
    _Shape(*row)
    for row in (
        ("anthropic_key", "sk-ant-", _URL_SAFE, 12),
        ("openai_key", "sk-(?:proj|svcacct|admin|service|None)-", _URL_SAFE, 12),
        ("api_key", "sk-(?:or|lf|user)-", _URL_SAFE, 12),
        ("openai_key", "sk-", _LETTERS, 20),
        ("aws_key_id", "(?:AKIA|ASIA)", "[A-Z0-9]", 16),
        ("github_token", "gh[pousr]_", _LETTERS, 16),
        ("github_token", "github_pat_", "[A-Za-z0-9_]", 16),
        (
            "gitlab_token",
            "gl(?:pat|dt|rt|ptt|ft|soat|cbt|imt|agent|oas|ffct)-",
            "[A-Za-z0-9_.-]",
            16,
        ),
        ("slack_token", "xox[a-z]-", "[A-Za-z0-9-]", 10),
        ("slack_token", "xoxe\\.xox[a-z]-", "[A-Za-z0-9-]", 10),
        ("slack_token", "xapp-[0-9]-", "[A-Za-z0-9-]", 10),
        ("webhook_url", "hooks\\.slack\\.com/(?:services|workflows|triggers)/", "[A-Za-z0-9/_-]", 12),
        ("webhook_url", "discord(?:app)?\\.com/api/webhooks/", "[A-Za-z0-9/_-]", 12),
        ("stripe_key", "[sr]k_(?:live|test)_", _LETTERS, 10),
        ("stripe_webhook_secret", "whsec_", "[A-Za-z0-9+/=_-]", 12),
        ("google_key", "AIza", _URL_SAFE, 30),
        ("google_token", "ya29\\.", "[A-Za-z0-9_.-]", 20),
        ("google_token", "1//0", _URL_SAFE, 30),
        ("google_secret", "GOCSPX-", _URL_SAFE, 16),
        ("huggingface_token", "hf_", _LETTERS, 20),
        ("twilio_key", "SK", _HEX, 32),
        ("sendgrid_key", "SG\\.", "[A-Za-z0-9_.-]", 30),
        ("npm_token", "npm_", _LETTERS, 30),
        ("pypi_token", "pypi-A", _URL_SAFE, 30),
        ("databricks_token", "dapi", "[0-9a-f-]", 30),
        ("digitalocean_token", "do[opr]_v1_", "[0-9a-f]", 32),
        ("prefactor_token", "pf_", _LETTERS, 16),
        ("prefactor_token", "pf_(?:live|test|sdk|prod|dev)_", "[A-Za-z0-9_-]", 12),
        ("groq_key", "gsk_", _LETTERS, 20),
        ("xai_key", "xai-", _LETTERS, 30),
        ("perplexity_key", "pplx-", _LETTERS, 20),
        ("replicate_token", "r8_", _LETTERS, 30),
        ("langsmith_key", "lsv2_(?:pt|sk)_", "[A-Za-z0-9_]", 16),
        ("tavily_key", "tvly-", _URL_SAFE, 16),
        ("elevenlabs_key", "sk_", "[0-9a-f]", 40),
        ("linear_key", "lin_api_", _LETTERS, 20),
        ("notion_token", "ntn_", _LETTERS, 30),
        ("vault_token", "hv[sbr]\\.", _URL_SAFE, 20),
        ("shopify_token", "shp(?:at|ca|pa|ss)_", "[0-9a-fA-F]", 30),
        ("supabase_token", "sbp_", "[0-9a-f]", 30),
        ("mailgun_key", "key-", "[0-9a-f]", 32),
        ("newrelic_key", "NRAK-", "[A-Z0-9]", 20),
        ("grafana_token", "glsa_", "[A-Za-z0-9_]", 30),
        ("sentry_token", "sntry[su]_", "[A-Za-z0-9_+/=-]", 30),
        ("atlassian_token", "ATATT3", "[A-Za-z0-9_=-]", 30),
        ("fireworks_key", "fw_", _LETTERS, 20),
        ("nvidia_key", "nvapi-", _URL_SAFE, 30),
        ("mapbox_token", "sk\\.eyJ", "[A-Za-z0-9_.-]", 30),
        ("docker_token", "dckr_pat_", _URL_SAFE, 16),
        ("postman_key", "PMAK-", "[0-9a-f-]", 30),
        ("figma_token", "figd_", _URL_SAFE, 20),
        ("airtable_token", "pat[A-Za-z0-9]{14}\\.", "[0-9a-f]", 30),
        ("doppler_token", "dp\\.(?:pt|st|sa|ct|scim|audit)\\.", _LETTERS, 30),
        ("pulumi_token", "pul-", "[0-9a-f]", 40),
        ("fly_token", "fm[12][a-z]?_", "[A-Za-z0-9+/=_-]", 40),
        ("rubygems_key", "rubygems_", "[0-9a-f]", 40),
        ("age_key", "AGE-SECRET-KEY-1", "[A-Z0-9]", 40),
        ("square_token", "sq0(?:atp|csp)-", _URL_SAFE, 20),
        ("brevo_key", "xkeysib-", "[0-9a-f-]", 40),
        ("dynatrace_token", "dt0[a-z]01\\.", "[A-Z0-9.]", 40),
        ("jwt", "eyJ(?:hbGci|0eXAi|raWQi|lbmMi|6aXAi|jdHki)", "[A-Za-z0-9_.=-]", 12),
        # A PEM that is encoded once more, as in a kubeconfig; certificates and public keys are none.
        (
            "private_key",
            "LS0tLS1CRUdJTiB(?:QUklW|SU0EgUFJJ|FQyBQUklW|PUEVOU1NIIFBSS|EU0EgUFJJ|FTkNSWVBURUQgUFJJ)",
            "[A-Za-z0-9+/=_-]",
            12,
        ),
        ("signature", "sig=", "[A-Za-z0-9%+/=_-]", 16),
        ("signature", "(?:Amz|Goog)-Signature=", "[A-Za-z0-9%+/=_-]", 16),
    )
)
# Shapes with no literal in front.
_LATE_SHAPES = (
    ("telegram_token", "[0-9]{8,10}:AA[A-Za-z0-9_-]{30,40}"),
    ("discord_token", "[MNO][A-Za-z0-9_-]{23,25}\\.[A-Za-z0-9_-]{6}\\.[A-Za-z0-9_-]{25,40}"),
    ("azure_secret", "[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{30,40}"),
    ("mailchimp_key", "[0-9a-f]{32}-us[0-9]{1,2}"),
    ("jwt", "e(?:yJ|wog|w0K)[A-Za-z0-9_-]{10,256}\\.e(?:yJ|wog|w0K)[A-Za-z0-9_.=-]+"),
)
# OpenSSL's and OpenSSH's; SSH2's; PuTTY's, which has a public part before.
_PRIVATE_KEY = (
    "-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY|Private-Lines: [0-9]"
)
# A password in a URL is taken to end at the last @: what was put in unescaped may hold any sign but a space. A port is
# none.
# One quote can be in it as well, in the middle of a word. Tokens can be long: they are taken even if what is behind
# them was cut off.
_URL_USER = r"://(?P<user>[^\s/?#:@\"'<>\\]{0,128}):(?![0-9]{1,5}(?:[/?#]|$))"
_IN_URL = re.compile(r"[^\s\"'<>]{0,256}")
_QUOTE_IN_URL = re.compile(r"(?<=[A-Za-z0-9\\])[\"'](?=[A-Za-z0-9])[^\s\"'<>]{1,256}")
_TOKEN_IN_URL = re.compile(r"[A-Za-z0-9._~%+/=-]{257,}")
_SCHEMES = r"(?:[bB]earer|BEARER|[bB]asic|BASIC)"

# ---- names -------------------------------------------------------------------------------------------------

KEYS = tuple(
    """
authorization auth basic_auth http_auth auth_header bearer bearer_token jwt
api_key api_token api_secret access_key access_token access_secret secret_key secret_access_key secret_token
auth_key auth_token session_key session_token session_cookie session
private_key signing_key signing_secret encryption_key decryption_key master_key account_key shared_key
shared_access_key subscription_key functions_key service_key service_account_key deploy_key ssh_key host_key
webhook_key webhook_secret client_secret client_key consumer_key consumer_secret
password passwd pwd passcode passphrase pass secret token refresh_token id_token
cookie set_cookie csrf csrf_token xsrf xsrf_token credential cred creds
connection_string conn_str conn_string secret_string authorization_code auth_code verification_code code_verifier
openai_key open_ai_key anthropic_key gemini_key mistral_key groq_key cohere_key deepseek_key openrouter_key
huggingface_key replicate_key pinecone_key tavily_key serper_key serpapi_key stripe_key sendgrid_key twilio_key
dd_app_key datadog_app_key dd_application_key datadog_application_key
azure_storage_key azure_search_key azure_search_admin_key azure_speech_key speech_key service_role_key
new_relic_license_key newrelic_license_key github_pat gitlab_pat azure_devops_pat devops_pat
secret_key_base secret_binary default_pass neo4j_auth neo4_j_auth fernet_key jwt_key aes_key hmac_key sshpass client_key_data
otp otp_code totp mfa_code recovery_code backup_code recovery_phrase seed_phrase mnemonic
""".split()  # noqa: SIM905 - a list of words reads better so
)
"""Names of fields whose values are secret, as words. A name matches that ends in one of them; see `Words`."""

# These alone are too common as the last word of other names: they count as a whole name, or after one of these words.
_WHOLE = {"pass", "session", "bearer", "auth", "cred", "otp", "mnemonic", "csrf", "xsrf"}
_BEFORE_WHOLE = (
    "db database user username smtp imap mail email mysql postgres pg redis mongo ftp sftp ssh http https proxy admin "  # noqa: SIM905 - a list of words reads better so
    "root my old new x api basic digest rabbitmq rediscli gmail jira keystore truststore aws gcp azure git docker registry service login".split()
)
# So unmistakable that no word need end before them: PGPASSWORD, authtoken, dbpasswd.
_GLUED = (
    "password passwd passphrase passcode apikey apitoken secretkey privatekey accesskey authtoken accesstoken "  # noqa: SIM905 - a list of words reads better so
    "refreshtoken bearertoken idtoken sessiontoken clientsecret csrftoken connectionstring".split()
)
# What may stand after the words without changing what the value is.
_SUFFIXES = (
    "value|raw|plain|plaintext|hash|hashed|digest|encrypted|enc|b64|base64|pem|header|"
    "new|old|current|confirm|confirmation|again|repeat|default|override|env|var|prod|dev|staging|test|live"
)
# Digits are taken as a whole: a name of many could be read in as many ways as they can be parted.
_AFTER_WORDS = re.compile(rf"(?:_(?:{_SUFFIXES})|_?(?:(?<![0-9])|(?<=_b64))[0-9]{{1,6}}(?![0-9])){{1,3}}$")
# Tokens that are a place in a list or a piece of text.
_NO_CREDENTIAL = set(
    "page next nextpage prev previous continuation pagination paging sync cursor max min eos bos pad unk stop mask sep cls special "  # noqa: SIM905 - a list of words reads better so
    "first last per input output prompt completion total cached cache reasoning image audio text media start end begin "
    "sub word byte decoder encoder chat message tool role think thinking newline end_of current_text resume".split()
)
_STRICT = {
    "token",
    "session",
    "auth",
    "cookie",
    "secret",
    "pass",
    "bearer",
    "authorization",
    "cred",
    "credential",
    "sshpass",
}

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_WORD = re.compile(r"[\W_]+")
# Each level of JSON in strings doubles the backslashes before a quote: five put 31 there.
_GAP = r"(?:[ \t\xa0]|\\+(?:t|u00a0))"  # between words, also of JSON in strings
_AFTER_NAME = rf"[\"'`\\\]*]{{0,40}}{_GAP}{{0,8}}(?:=>|:=|[:=]|%3[DdAa])"


def words_of(name: str) -> str:
    """Return *name* in lower case with an underscore between words: "X-ApiKey" gives "x_api_key"."""
    return _NOT_WORD.sub("_", _CAMEL.sub("_", name[-120:]).lower()).strip("_")


# ---- the engine --------------------------------------------------------------------------------------------


def searcher(pattern: str) -> Callable[[Any], bool]:
    """Return a function that says whether *pattern* is somewhere in a str, or in bytes of UTF-8."""
    schema = {"type": "str", "pattern": pattern}
    return _native().SchemaValidator(schema).isinstance_python  # type: ignore[no-any-return]


def _native() -> Any:
    """Return the compiled part of pydantic-core, without the package around it, which takes 30 ms to load."""
    name = "pydantic_core._pydantic_core"
    found = sys.modules.get(name)
    if found is not None:
        return found
    from importlib.machinery import EXTENSION_SUFFIXES
    from importlib.util import find_spec, module_from_spec, spec_from_file_location
    from pathlib import Path

    package = find_spec("pydantic_core")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for suffix in EXTENSION_SUFFIXES:
            path = Path(folder) / f"_pydantic_core{suffix}"
            spec = spec_from_file_location(name, path) if path.exists() else None
            if spec is not None and spec.loader is not None:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    import pydantic_core  # packed in some other way

    return pydantic_core


# ---- what is looked for ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A secret in a text: characters *start* to *end*."""

    kind: str
    start: int
    end: int


class Words:
    """The names that are sensitive, and all patterns that follow from them.

    Args:
        keys: Names besides `KEYS`, in any way of writing; "-name" takes one out, "-*" all of `KEYS`.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        chosen = dict.fromkeys(() if "-*" in keys else KEYS)
        for key in keys:
            name = words_of(key)
            if not key.startswith("-"):
                chosen[name] = None
            else:
                chosen.pop(name, None)
        self._keys = {key for key in chosen if key}
        self._most_words = max((key.count("_") + 1 for key in self._keys), default=0)
        own = {words_of(key) for key in keys if not key.startswith("-")}
        self._whole = _WHOLE - own
        joined = {key.replace("_", ""): key for key in self._keys}
        self._joined = {key: name for key, name in joined.items() if key not in self._keys}
        self._glued = tuple(word for word in _GLUED if word in self._joined or word in self._keys)
        names = _names_pattern(self._keys)
        # A whole string that is a name can have the secret beside it; one that only ends in such a word has not.
        whole = f"[\"'][A-Za-z0-9_.-]* ?[A-Za-z0-9_.-]* ?(?:{names})\\\\*[\"'](?:[,}}> \r\n]|\\\\+[nr])"
        suspects = [
            *_SUSPECTS,
            f"(?:{names})(?:{_AFTER_NAME}|>| is | [a-z:]+=\\\\*[\"'])",
            whole,
            f"--[A-Za-z0-9_-]*(?:{names})(?: |\\\\*[\"'],)",
        ]
        self.suspect = searcher("|".join(suspects))
        self._may_be_name = searcher(f"(?:{names})[^A-Za-z0-9]{{0,9}}$")

    @staticmethod
    def looks_secret(value: str) -> bool:
        """Tell a secret from a word."""
        return looks_secret(value)

    @staticmethod
    def is_no_word(value: str) -> bool:
        """Tell a secret from the name of another field, rather too often."""
        has_digit = any(sign.isdigit() for sign in value)
        return looks_secret(value) or (len(value) >= 6 and has_digit and not any(map(str.isspace, value)))

    @staticmethod
    def is_prose(text: str) -> bool:
        """Say whether a word of *text* is one that secrets do not have, as in "is required"."""
        return any(map(_PROSE.match, text[:_WINDOW].split()))

    # -- names ---------------------------------------------------------------------------------------------

    def name(self, name: str) -> str | None:
        """Return the sensitive words that *name* ends in, joined by underscores, or None."""
        if not self._may_be_name(name):
            return None
        words = words_of(name)
        found = self._name(words)
        if found is None:
            bare = _AFTER_WORDS.sub("", words)
            found = self._name(bare) if bare != words else None
        return found

    def _name(self, words: str) -> str | None:
        parts = words.split("_")
        for start in range(max(0, len(parts) - self._most_words), len(parts)):
            ending = "_".join(parts[start:])
            found = self._key(ending)
            if found is None:
                continue
            before = parts[start - 1] if start else ""
            if found in self._whole and (before not in _BEFORE_WHOLE if before else found == "pass"):
                continue  # alone, "pass" is what tests do
            if found == "token" and before in _NO_CREDENTIAL:
                return None
            return found
        last = parts[-1]
        for glued in self._glued:
            if last.endswith(glued):
                return self._joined.get(glued, glued)
        return None

    def _key(self, ending: str) -> str | None:
        for name in (
            ending,
            ending[:-1] if ending.endswith("s") and ending not in ("tokens", "pass") else "",
        ):
            if name in self._keys:
                return name
            if name in self._joined:
                return self._joined[name]
        return None

    # -- text ----------------------------------------------------------------------------------------------

    def find(
        self, text: str, *, is_cut: bool = False, is_late: Callable[[], bool] = lambda: False
    ) -> list[Found]:
        """Return the secrets in *text*, in order, none inside another.

        *is_cut*: the text went on, so that what ends it may be the beginning of a secret. *is_late*: asked all along;
        once it says so, what is left of the text is one secret, "unsearched".
        """

        def look_at_clock() -> None:
            if is_late():
                raise _LateError

        found = list(_private_keys(text, is_late)) if "PRIVATE KEY" in text or _PUTTY in text else []
        reached = 0
        for start in range(0, max(1, len(text) - OVERLAP), _WINDOW - OVERLAP):
            end = min(start + _WINDOW, len(text))
            # Not again inside of a long value, and only where it is worth a closer look.
            if (start and end <= reached) or (len(text) > _WINDOW and not self.suspect(text[start:end])):
                continue
            try:
                look_at_clock()
                here = [
                    *_shaped(text, start, end, look_at_clock),
                    *self._assignments(text, max(start, reached), end, look_at_clock),
                ]
                reached = max([reached, *[one.end for one in here]])
                found += here
                found += self._named_otherwise(text, start, end, look_at_clock, is_cut=is_cut)
                for cut in _CUT_INSIDE.finditer(text, start, end):
                    look_at_clock()
                    found += _at_the_end(text, cut.start())
            except _LateError:
                found.append(Found("unsearched", start, len(text)))
                break
        if is_cut:
            found += _at_the_end(text, len(text))
        found.sort(key=lambda one: (one.start, -one.end))
        return _merged(found)

    def _assignments(
        self, text: str, start: int, end: int, look_at_clock: Callable[[], None]
    ) -> Iterator[Found]:
        """Find the values of `name=value`, `name: value` and `"name": "value"`."""
        position = start
        while True:
            match = _SEPARATOR.search(text, position, end)
            if match is None:
                return
            look_at_clock()
            position = match.end()
            left = _LAST_GAP.sub("", text[max(0, match.start() - 100) : match.start()]).removesuffix("**")
            bare = left.rstrip("\"'`\\]")
            name = bare[len(bare.rstrip(_NAME_SIGNS)) :]
            kind = self.name(name) if name else None
            if kind is None and bare[-len(name) - 1 : -len(name)] in _BEFORE_ESCAPED:
                name = _ESCAPED.sub("", bare[-len(name) - 1 :])
                kind = self.name(name)
            if kind is None and bare.endswith(f" {name}"):  # "API key: ..."
                kind = self.name(" ".join(bare[-100:].split(" ")[-2:]))
            if kind is None:
                continue
            is_quoted = len(bare) < len(left)
            is_alone = match.group()[0] == ":" and _ALONE.search(bare.removesuffix(name)) is not None
            found = _value_below(text, position, kind) if is_alone else None
            found = found or _value_at(
                text, position, name, kind, is_sure=is_quoted or match.group()[:1] in "=%"
            )
            if found is not None and (
                found[1] - found[0] > _JUDGED or not _is_name(text[slice(*found)], kind, words_of(name))
            ):
                # else it is code, as in `password=password`
                yield Found(kind, *found)
                position = max(position, found[1])

    def _named_otherwise(
        self, text: str, start: int, end: int, look_at_clock: Callable[[], None], *, is_cut: bool
    ) -> Iterator[Found]:
        """Find the values of `--name value` and `<name>value</name>`, and those that no name stands before."""
        yield from self._flags(text, start, end, look_at_clock)
        for match in _TAG.finditer(text, start, end):
            kind = self.name(match.group("name"))
            stop = _whole(_TAG, text, match, end) if kind else 0
            is_closed = text.startswith(("</", "<\\/", "></"), stop) or (is_cut and text[stop:] in _CUT_ENDS)
            if kind and is_closed:  # else it stands for a value, as in `--token=<your-token>`
                yield Found(kind, match.start("value"), stop)
        for match in chain(*(each.finditer(text, start, end) for each in (_BESIDE, _BEFORE, _PART, _SAID))):
            kind = self.name(match.group("name"))
            if kind and self.is_no_word(match.group("value")):
                yield Found(kind, match.start("value"), match.end("value"))
        for match in _PAIR.finditer(text, start, end):
            kind = self.name(match.group("name"))
            is_last = is_cut and match.end() == len(text)
            is_whole = bool(match.group("closed")) and self.is_no_word(match.group("value"))
            if kind and (is_whole or is_last):
                yield Found(kind, match.start("value"), match.end("value"))
        yield from self._in_commands(text, start, end, look_at_clock)

    def _flags(self, text: str, start: int, end: int, look_at_clock: Callable[[], None]) -> Iterator[Found]:
        """Find the values of `--name value` and `"--name", "value"`."""
        position = start
        for match in _FLAG.finditer(text, start, end):
            if match.start() < position:  # inside of a value
                continue
            look_at_clock()
            name = match.group("name")
            kind = self.name(name)
            found = _value_at(text, match.end(), name, kind, is_sure=True) if kind else None
            if not kind or found is None:
                continue
            value = text[slice(*found)][:_JUDGED]
            # In quotes it can also be what code says of an option.
            is_said = "," in match.group() and (
                _is_name(value, kind, words_of(name)) or not self.is_no_word(value) or self.is_prose(value)
            )
            if not (is_said or _PROSE.match(value)):
                yield Found(kind, *found)
                position = found[1]

    def _in_commands(
        self, text: str, start: int, end: int, look_at_clock: Callable[[], None]
    ) -> Iterator[Found]:
        for pattern in _IN_COMMANDS:
            look_at_clock()
            for match in pattern.finditer(text, start, end):
                value = match.group("value")
                if not (_PLACEHOLDER.match(value) or _PROSE.match(value)) or self.is_no_word(value):
                    yield Found("password", match.start("value"), match.end("value"))

    # -- lists ---------------------------------------------------------------------------------------------

    def arguments(self, items: list[Any], is_late: Callable[[], bool]) -> dict[int, tuple[str, int]]:
        """Return which of *items*, if they are the arguments of a command, hold a secret.

        By place in the list: of what kind it is, and where in the item it begins. It goes on to the item's end.
        """

        def look_at_clock() -> None:
            if is_late():
                raise _LateError

        first = items[:_MOST_ARGUMENTS]
        texts = [item if type(item) is str else "0" if type(item) is int else "-" for item in first]
        plain = [_NOT_IN_WORD.sub("_", each[:OVERLAP]) for each in texts]
        starts = [0, *accumulate(len(each) + 1 for each in plain)]
        text = " ".join(plain)
        found: dict[int, tuple[str, int]] = {}
        with suppress(_LateError):  # what is left of the list goes unseen
            for start in range(0, max(1, len(text) - OVERLAP), _WINDOW - OVERLAP):
                end = min(start + _WINDOW, len(text))
                for one in chain(
                    self._assignments(text, start, end, look_at_clock),
                    self._flags(text, start, end, look_at_clock),
                    self._in_commands(text, start, end, look_at_clock),
                ):
                    place = bisect_right(starts, one.start) - 1
                    begin = one.start - starts[place]
                    before, value = plain[place][:begin], texts[place][begin:]
                    is_said = self.is_prose(value) or _is_name(value, one.kind, one.kind)
                    if _BEFORE_ARGUMENT.match(before) and not is_said:
                        found[place] = (one.kind, begin)
        return found


_NAME_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-."
_PUTTY = "Private-Lines: "
_BEFORE_ESCAPED = {"\\", "%", "[", ";"}
_ESCAPED = re.compile(
    r"\\[nrtbf]?|%[0-9A-Fa-f]{2}|[\[;](?:[0-9]{0,3}m)?"
)  # what of it is none of the name behind it
_CUT_ENDS = ("", "<", "<\\", ">", "><")
_SEPARATOR = re.compile(rf"(?:=>|:=|(?<![=!<>])[=:](?!=|//)|%3[DdAa](?:%20)?){_GAP}{{0,8}}(?:\*{{2}} )?")
_LAST_GAP = re.compile(rf"{_GAP}{{1,8}}\Z")
# Between two arguments of a command in a list, in JSON or as `repr` shows it; in JSON of several lines, too.
_COMMA = r"\\{0,7}[\"'],(?:\s|\\{1,7}n){0,40}"
_NEXT = rf"(?:\s|{_COMMA}\\{{0,7}}[\"'])"
_FLAG = re.compile(  # of a command line
    rf"--(?<!---)(?P<name>[A-Za-z][A-Za-z0-9_-]{{1,40}})(?:[ ]+(?=[^\s<-])|{_COMMA}(?=\\{{0,7}}[\"'][^\s\"'\\<-]))"
)
_NOT_IN_WORD = re.compile(r"[\s\"'`\\|;]")
# What can stand before the secret in the same argument; behind anything else it ends before the argument does.
_BEFORE_ARGUMENT = re.compile(r"(?:-.*|[A-Za-z0-9_.@%+-]+[:=])?\Z")
_TAG = re.compile(
    r"<(?:[A-Za-z][A-Za-z0-9_.-]{0,40}:)?(?P<name>[A-Za-z][A-Za-z0-9_.-]{1,60})(?:\s[^<>]{0,200})?>"
    r"(?:<!\[CDATA\[)?(?P<value>[^<>]+)"
)
_Q = r"\\{0,7}[\"']"
_WHITE = r"(?:\s|\\{1,7}[nrt]){0,40}"
# A tuple of two, as `repr` shows it; and how people tell each other.
_PAIR = re.compile(
    rf"[(\[]{_WHITE}b?{_Q}(?P<name>[A-Za-z0-9_.-]{{1,60}}){_Q},{_WHITE}b?{_Q}"
    rf"(?P<value>[^\"'\n]{{1,512}}?)(?:{_Q}{_WHITE}(?:(?P<closed>[)\]])|\Z)|\Z)"
)
# An object or a tag of name and value, as headers and settings can be, in JSON, as `repr` shows it, or in XML.
_NAME_BESIDE = rf"[\"'\s](?i:name|key|header|field)(?:{_Q}: ?b?|=){_Q}(?P<name>[A-Za-z0-9_.-]{{1,60}}){_Q}"
_VALUE_BESIDE = rf"[\"'\s](?i:value)(?:{_Q}: ?b?|=){_Q}(?P<value>[^\"'<>\n]{{4,512}}(?<!\\))"
_OTHERS_BESIDE = r"(?=[\s,])[^{}<>]{0,120}?"
_BESIDE = re.compile(f"{_NAME_BESIDE}{_OTHERS_BESIDE}{_VALUE_BESIDE}")
_BEFORE = re.compile(f"{_VALUE_BESIDE}{_Q}{_OTHERS_BESIDE}{_NAME_BESIDE}")
_PART = re.compile(  # of what a form in a browser sends
    rf"form-data; name={_Q}(?P<name>[A-Za-z0-9_.-]{{1,60}}){_Q}(?:(?:(?:\r|\\{{1,7}}r)?(?:\n|\\{{1,7}}n)){{2}}| )"
    r"(?P<value>(?:(?!\\{1,7}[rn])[^\s\"'<>]){4,512})"
)
_SAID = re.compile(r"\b(?P<name>[A-Za-z][A-Za-z_-]{2,40}(?: key)?) is [\"'`]?(?P<value>[^\s\"'`<>]{6,512})")
# What of a command stands between its name and the flag.
_BEFORE_FLAG = rf"{_NEXT}[^\n|;]{{0,200}}?(?<=[\s\"'])"
_ARGUMENT = r"(?:[\"'](?![],)]))?(?P<value>[^\s\"'\\-][^\s\"']{0,256}(?<!\\))"
_THEN = rf"(?:{_NEXT}|[ =]?[\"'\\]{{0,4}})"
_BETWEEN = r"(?:\s|\\+[nt])+"
_IN_COMMANDS = (
    re.compile(
        rf"\b(?:curl|wget|https?|xh){_BEFORE_FLAG}(?:-u|-a|-U|--user|--auth|--proxy-user){_THEN}"
        r"[A-Za-z0-9_.@%+-]{1,64}:(?P<value>[^\s\"'\\]{1,256})"
    ),
    re.compile(rf"\b(?:mysql[a-z]{{0,6}}|mariadb[a-z-]{{0,6}}){_BEFORE_FLAG}-p{_ARGUMENT}"),
    re.compile(rf"\b(?:sshpass|(?:docker|podman){_NEXT}login){_BEFORE_FLAG}-p{_NEXT}?{_ARGUMENT}"),
    re.compile(rf"\b(?:redis-cli{_BEFORE_FLAG}-a|ldap[a-z]{{3,9}}{_BEFORE_FLAG}-w){_NEXT}{_ARGUMENT}"),
    re.compile(
        rf"\b(?:machine +(?=[^\s.]{{1,60}}\.|localhost)\S{{1,250}}{_BETWEEN}|default +)login{_BETWEEN}\S{{1,200}}{_BETWEEN}password{_BETWEEN}"
        r"(?P<value>[^\s\\\"']{1,256})"
    ),
)
"""Commands and files of logins, `.netrc`, in which no name stands before the password."""
_WINDOW = 1_024
OVERLAP = 512
"""Whatever is looked for shows itself within so many characters."""
_MOST_ARGUMENTS = 256  # of a command, from its beginning


def _names_pattern(keys: Iterable[str]) -> str:
    """Return a pattern for *keys* at the end of a name, written in any way."""
    endings = sorted(
        "[_. -]?".join(map(re.escape, key.split("_"))) + ("" if key == "token" else "s?") for key in keys
    )
    ascii_only = "" if any(not key.isascii() for key in keys) else "-u"  # a tenth of the automaton
    one = f"(?:{'|'.join(endings)})(?:[_. -]?(?:{_SUFFIXES}|[0-9]{{1,3}})){{0,2}}"
    return f"(?i{ascii_only}:{one})" if endings else "[^\\s\\S]"


_CUT = r"(?:\",\"(?:length|tail)\":|\.\.\. \()"  # how a text that was cut ends, as capture writes it
# To count what can begin anywhere takes a state for each beginning, ten times as long in a long number. Only the closer
# look counts.
_COUNTED = re.compile(r"^(\[[^\]]+\])\{[0-9,]+\}")
_ANY_NEXT = r"(?:[ \t\n]|\\+[nt]|\\*[\"'],(?:[ \r\n]|\\+[rn])*\\*[\"'])"
_SUSPECTS = [
    f"(?:[ \t\n\"']|\\\\+[nt])(?:-u|-a|-U|--user|--auth|--proxy-user)(?:{_ANY_NEXT}|[ =]?[\\\\\"']{{0,4}})[A-Za-z0-9_.@%+-]+:",
    f"(?:mysql[a-z]*|mariadb[a-z-]*|sshpass|redis-cli|ldap[a-z]+){_ANY_NEXT}-",
    f"(?:docker|podman){_ANY_NEXT}login{_ANY_NEXT}",
    r"machine +(?:[A-Za-z0-9_-]+\.|localhost)|default +login",
    *[f"{shape.head}(?:{shape.body}{{{shape.least}}}|{shape.body}*{_CUT})" for shape in _SHAPES],
    *[_COUNTED.sub(r"\1", pattern) for _, pattern in _LATE_SHAPES],
    f":AA[A-Za-z0-9_-]*{_CUT}",
    f"[MNO][A-Za-z0-9_-]{{23,25}}\\.[A-Za-z0-9_.-]*{_CUT}",
    f"e(?:yJ|wog|w0K)[A-Za-z0-9_.-]{{0,40}}{_CUT}",
    "PRIVATE KEY|Private-Lines: ",
    rf"://[^ /?#:@\"'<>]*:[^ \"'<>]*(?:[\"'][A-Za-z0-9][^ \"'<>]*)?(?:@|{_CUT})",
    "://[^ /?#:@\"'<>]*:[0-9]*[^0-9/?# \"'<>][^ \"'<>]*$",  # it goes on behind a window
    "%3[aA](?:/|%2[fF]){2}[^ /?#%\"'<>]*%3[aA][^ \"'<>]*%40",
    rf"{_SCHEMES}(?:[ \t\r\n]|\\+[nt]|%20)+(?:[A-Za-z0-9+/._~=-]{{6}}|[A-Za-z0-9+/._~=-]*{_CUT})",
]

# Each part begins at a literal and is left at once where it does not fit.
_SHAPED = re.compile(
    "|".join(
        [f"(?P<s{n}>{each.head}{each.body}{{{each.least},}})" for n, each in enumerate(_SHAPES)]
        + [f"(?P<l{n}>{pattern})" for n, (_, pattern) in enumerate(_LATE_SHAPES)]
    )
)
_RUN = re.compile(r"[A-Za-z0-9_.~+/=:?&%\\-]{12,}")
# What ends in a letter or digit and is none of the word behind it: an escape of JSON, of a repr or of a URL, and the
# codes that colour what a terminal shows.
_BEHIND = (
    r"(?:(?<![A-Za-z0-9])|(?<=[\\%\[;0-9a-fA-F][A-Za-z0-9])"  # the rest is looked at for few
    r"(?:(?<=\\[nrtbfav0])|(?<=\\u[0-9a-fA-F]{4})|(?<=\\x[0-9a-fA-F]{2})|(?<=%[0-9a-fA-F]{2})"
    r"|(?<=\[[mK])|(?<=[\[;][0-9][mK])|(?<=[\[;][0-9]{2}[mK])|(?<=[\[;][0-9]{3}[mK])))"
)
_BOUNDARY = re.compile(rf"(?=[A-Za-z0-9?&;%]){_BEHIND}")
_KEY_BEGINS = re.compile(_PRIVATE_KEY)
_KEY_ENDS = re.compile(
    r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|---- END SSH2 ENCRYPTED PRIVATE KEY ----"
    r"|Private-MAC: [0-9a-f]{1,128}"
)
_URLS = re.compile(_URL_USER)
# The same inside of another URL.
_ENCODED_URLS = re.compile(
    r"%3[aA](?:/|%2[fF]){2}[^\s/?#%\"'<>]{0,128}%3[aA](?P<pass>[^\s\"'<>&]{1,256}?)%40"
)
_CREDENTIALS = re.compile(
    rf"(?=[bB]){_BEHIND}(?P<scheme>{_SCHEMES})(?:\s|\\+[nt]|%20)+(?P<value>[A-Za-z0-9+/._~=-]{{6,}})"
)
_TAIL = re.compile(
    "(?:"
    + "|".join(
        [f"{shape.head}{shape.body}*" for shape in _SHAPES]
        + [
            "[0-9]{8,10}:[A-Za-z0-9_-]*",
            "[MNO][A-Za-z0-9_-]{23,25}\\.[A-Za-z0-9_.-]*",
            "e(?:yJ|wog|w0K)[A-Za-z0-9_.-]*",
            r"://[^\s/?#:@\"'<>]{0,128}:[^\s\"'<>]*",
            rf"{_SCHEMES}\s+\S*",
        ]
    )
    + r")\Z"
)
_TAIL_LENGTH = 400
# As `shorten` leaves it, in texts put together of others.
_CUT_INSIDE = re.compile(r"\.\.\. \([0-9]{1,12} characters\)")


class _LateError(Exception):
    """The time is up in the middle of a window."""


def _shaped(text: str, start: int, end: int, look_at_clock: Callable[[], None]) -> Iterator[Found]:
    for run in _RUN.finditer(text, start, end):
        yield from _shapes_in(text, run.start(), run.end(), look_at_clock)
    position = start
    for match in _URLS.finditer(text, start, end):
        stop = _url_password_end(text, match.end()) if match.start() >= position else 0
        if stop > match.end():
            yield Found("password", match.end(), stop)
            position = stop
    for match in _ENCODED_URLS.finditer(text, start, end):
        yield Found("password", match.start("pass"), match.end("pass"))
    for match in _CREDENTIALS.finditer(text, start, end):
        if _is_credential(match.group("scheme").lower(), match.group("value")):
            stop = _whole(_CREDENTIALS, text, match, end)
            yield Found(match.group("scheme").lower(), match.start("value"), stop)


def _url_password_end(text: str, start: int) -> int:
    """Return where the password ends that may begin at *start*; not behind it if there is none."""
    run = _IN_URL.match(text, start)
    stop = run.end() if run else start
    at = text.rfind("@", start, stop)
    if at > start:
        return at
    if stop == start + 256:
        token = _TOKEN_IN_URL.match(text, start)
        return token.end() if token else start
    rest = _QUOTE_IN_URL.match(text, stop)
    return text.rfind("@", stop, rest.end()) if rest else start


def _private_keys(text: str, is_late: Callable[[], bool]) -> Iterator[Found]:
    begin = _KEY_BEGINS.search(text)
    while begin is not None:
        end = None if is_late() else _KEY_ENDS.search(text, begin.end())
        yield Found("private_key", begin.start(), end.end() if end else len(text))
        begin = _KEY_BEGINS.search(text, end.end()) if end else None


def _shapes_in(text: str, start: int, end: int, look_at_clock: Callable[[], None]) -> Iterator[Found]:
    """Find shapes that begin at a word in the run from *start* to *end*."""
    position = start
    for count, boundary in enumerate(_BOUNDARY.finditer(text, start, end)):
        if boundary.start() < position:
            continue
        if (
            not count & 31
        ):  # where every other sign begins a word, all of a window can take the time of a value
            look_at_clock()
        match = _SHAPED.match(text, boundary.start())
        if match is not None:
            group = match.lastgroup or "s0"
            index = int(group[1:])
            kind = _SHAPES[index].kind if group[0] == "s" else _LATE_SHAPES[index][0]
            yield Found(kind, match.start(), match.end())
            position = match.end()


def _whole(pattern: re.Pattern[str], text: str, match: re.Match[str], end: int) -> int:
    """Return where *match*, found before *end*, ends in the whole text."""
    again = pattern.match(text, match.start()) if match.end() == end else None
    return again.end() if again else match.end()


def _is_credential(scheme: str, value: str) -> bool:
    """Tell a credential from a word of prose."""
    if scheme == "bearer":
        return len(value) >= 20 or any(sign.isdigit() for sign in value) or value[1:] != value[1:].lower()
    bare = value.rstrip("=.")
    try:
        return b":" in base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


def _at_the_end(text: str, end: int) -> Iterator[Found]:
    """Find what may be the beginning of a secret where *text* was cut."""
    match = _TAIL.search(text, max(0, end - _TAIL_LENGTH), end)
    if match is not None:
        yield Found("cut_secret", match.start(), end)


def _merged(found: list[Found]) -> list[Found]:
    """Return *found*, sorted by start, with those that overlap made one."""
    merged: list[Found] = []
    for one in found:
        if merged and one.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = last._replace(end=max(last.end, one.end))
        elif one.end > one.start:
            merged.append(one)
    return merged


# ---- values in text ----------------------------------------------------------------------------------------

_QUOTE = re.compile(r"(\\{0,40})([\"'`])")
_TRIPLED = re.compile(r"(\\{0,40}[\"'])\1\1(?![\s,;:)\]}])")  # of Python and TOML
_BRACKET = re.compile(r"[][{}]")
# An unquoted value ends at a space or quote, and where the next `name=` begins.
_BARE = re.compile(r"(?:(?![&;,][ ]?[A-Za-z_][A-Za-z0-9_.-]{0,40}=)[^\s\"'`<>])+")
_BARE_REST = re.compile(r"[^\s\"'`<>]+")
_TO_LINE_END = re.compile(r"[^\r\n\"'`]+")
_ESCAPED_LINE = re.compile(r"(?:(?!\\{1,40}[rn])[^\r\n\"'`])+")
_WHOLE_LINE = re.compile(r"[^\r\n]+")
_REST = {_BARE: _BARE_REST, _ESCAPED_LINE: _TO_LINE_END}  # of what is very long
_PARAMETERS = re.compile(r"(?i:digest|aws4-hmac-sha256)[ \t]")
_SCHEME = re.compile(r"(?i:bearer|basic|token|digest|negotiate|apikey|bot|ssws|aws4-hmac-sha256)[ \t]")
# What stands for a value: variables, templates, calls, and words of prose and schemas.
_PLACEHOLDER = re.compile(
    r"(?:\$\{?[A-Z_][A-Z0-9_]*\}?|\$\{.*|\{\{?[A-Za-z_. ]*\}?\}?|%\([a-z_]+\)s|%s|\*{3,}|x{4,}|\.{3}"
    r"|(?:os|process|self|config|settings|env|getpass|secrets|args|kwargs|options|request|req|ctx|st)[.([].*"
    r"|[A-Za-z_][A-Za-z0-9_.]*\(\)?"
    # Calls, items and types in code; and what a reader is to replace.
    r"|[A-Za-z_.]+\([A-Za-z0-9_.=*\[\]]*[,)]+|[A-Za-z_.]+\[[A-Za-z_]{0,20}\]"
    r"|(?:optional|union|list|dict|tuple|set|sequence|annotated|literal|callable|secretstr)\[[A-Za-z_,. |\[\]]*"
    r"|your[-_](?:[a-z]+[-_])*(?:key|token|secret|password|here)|await|lambda"
    r"|none|null|nil|true|false|undefined|str|string|int|bool|bytes|any|\[redacted)[,.;:)\]}]*\Z",
    re.IGNORECASE,
)
# What follows a name and a colon in prose.
_PROSE = re.compile(
    r"(?:optional|required|is|was|are|the|a|an|must|may|can|to|of|or|and|for|in|not|no|missing|invalid|incorrect"
    r"|wrong|expired|empty|unset|set|here|please|your|you|my|from|with|this|that|enter|use|see|if|at|get|as|on|by|it|its|will|should|each|only|used|needed|needs|option|options|flag|argument|parameter|instead|again|when|which|but|so|then|-)[,.;:!?)]*\Z",
    re.IGNORECASE,
)


def _value_at(text: str, start: int, name: str, kind: str, *, is_sure: bool) -> tuple[int, int] | None:
    """Return where the value at *start* begins and ends, None if there is none worth hiding.

    *is_sure*: the name is quoted, or followed by a `=`, as names in prose are not.
    """
    quote = _QUOTE.match(text, start)
    tripled = quote and _TRIPLED.match(text, start)
    if tripled is not None:
        stop = text.find(tripled.group(), tripled.end())
        return tripled.end(), stop if stop >= 0 else len(text)
    if quote is not None:
        stop = _quoted_end(text, quote.end(), len(quote.group(1)), quote.group(2))
        return (quote.end(), stop) if stop > quote.end() else None
    if kind == "pwd" and text.startswith("/", start):  # the working directory
        return None
    if text[start : start + 1] in ("{", "["):
        return (start, _bracket_end(text, start)) if is_sure else None
    pattern = _pattern_of(text, start, name, kind)
    match = pattern.match(text, start, start + _JUDGED)
    if match is None:
        return None
    opening = _QUOTE.match(text, match.end()) if is_sure and _BEFORE_QUOTE.search(match.group()) else None
    if opening is not None:  # bytes, or an object whose field it is, as `repr` shows them
        return start, _quoted_end(text, opening.end(), len(opening.group(1)), opening.group(2))
    value = match.group()
    last = kind.rpartition("_")[2]
    if _PLACEHOLDER.match(value) or (last in _STRICT and _is_number(value)):
        return None
    if not is_sure and (_PROSE.match(value) or (last in _STRICT and not looks_secret(value))):
        return None
    if match.end() < start + _JUDGED:
        return start, match.end()
    end = (pattern.match(text, start, start + _LONG) or match).end()
    rest = _REST.get(pattern, pattern).match(text, end) if end >= start + _LONG else None
    return start, rest.end() if rest else end


def _value_below(text: str, start: int, kind: str) -> tuple[int, int] | None:
    """Find a value that stands alone on the next line, as in YAML and in letters: one word, and no code."""
    match = _BELOW.match(text, start, start + _LONG)
    if match is None:
        return None
    value = match.group("value")
    is_named = _PLACEHOLDER.match(value) or _DOTTED.match(value)
    # Of words and numbers only people make secrets.
    is_label = not kind.startswith("pass") and _NUMBERED.match(value)
    return None if is_named or is_label else match.span("value")


_LINE_END = r"(?:\r|\\{1,40}r)?(?:\n|\\{1,40}n)"
# The name is all there is on its line.
_ALONE = re.compile(
    rf"(?:\A|{_LINE_END}|[\"'])[ \t>#*\\\"']{{0,40}}(?:(?i:your|the|my|new|temporary|initial|one-time) ){{0,3}}\Z"
)
_BELOW = re.compile(
    rf"(?:[|>][+-]?)?{_GAP}{{0,8}}{_LINE_END}(?:{_GAP}{{0,8}}{_LINE_END})?{_GAP}{{0,32}}"
    r"(?=[^\s0-9]{0,64}[0-9])(?=[^\sA-Za-z]{0,64}[A-Za-z])"
    r"(?P<value>[A-Za-z0-9!#%&*+.?@^_-](?:(?![()\[\]{}<>$`:\"'\\])[!-~]){6,512}(?<![,;]))"
    rf"(?={_GAP}{{0,8}}(?:{_LINE_END}|\\{{0,40}}[\"']|\Z))"
)
_DOTTED = re.compile(r"(?:[A-Za-z0-9_-]+\.)+[A-Za-z_]\w*(?:/|\Z)|[A-Za-z]+/|[a-z]+=")
"""Hosts, things in code, protocols and assignments."""
_NUMBERED = re.compile(r"[A-Za-z]+[0-9]{0,4}(?:[-_][A-Za-z]+[0-9]{0,4})*\Z")
_BEFORE_QUOTE = re.compile(r"^[bBrRuU]{1,2}\Z|[(=]\Z")
_JUDGED = 64  # characters that tell a value from what stands for one: all of it each time would be quadratic
_LONG = 2_048  # characters of a value behind which its end is looked for in a simpler way, and rather later
_MOST_SIGNS = 1_000  # quotes or brackets in a value; with more it goes to the end of the text
_MOST_BACKSLASHES = 64  # before a quote


def _is_name(value: str, kind: str, name: str) -> bool:
    """Say whether *value* is what is called so in code: `password=password`, `password=user.password`."""
    owner, dot, last = value.rstrip(",;)").rpartition(".")
    return words_of(value) in (kind, name) or (
        dot == "." and owner.replace("_", "").replace(".", "").isalpha() and words_of(last) in (kind, name)
    )


def _is_number(value: str) -> bool:
    return value.rstrip(".,;)}]").replace(".", "").isdigit()


def _pattern_of(text: str, start: int, name: str, kind: str) -> re.Pattern[str]:
    """Return what matches an unquoted value: to the end of the line for headers and variables, else one word."""
    line = _ESCAPED_LINE if "\\" in text[start : start + _LONG] else _TO_LINE_END
    if kind.endswith(("cookie", "authorization")):
        if _PARAMETERS.match(text, start) and kind.endswith("authorization"):
            return _WHOLE_LINE
        return line if kind.endswith("cookie") or _SCHEME.match(text, start) else _BARE
    return line if name == name.upper() and _begins_line(text, start) else _BARE


def _begins_line(text: str, start: int) -> bool:
    """Say whether the `NAME=` before *start* is all there is on its line, but for `export`."""
    line = text[max(0, start - 200) : start].replace("\\n", "\n").rpartition("\n")[2].strip()
    return line.endswith("=") and (line.startswith("export ") or " " not in line)


def looks_secret(value: str) -> bool:
    """Tell a secret from a word, as the value after "token: "."""
    value = value.rstrip(".,;:!?)")
    has_letter = any(sign.isalpha() for sign in value)
    has_other = any(not sign.isalpha() for sign in value[1:-1])
    is_mixed = value[1:] != value[1:].lower() and value != value.upper()
    return len(value) >= 6 and has_letter and (has_other or is_mixed or len(value) >= 24)


def _quoted_end(text: str, start: int, backslashes: int, quote: str) -> int:
    """Return where the string ends that an opening *quote* after so many *backslashes* begins.

    A quote inside it has more of them: each level of JSON in strings doubles them and adds one.
    """
    position = text.find(quote, start)
    for _ in range(_MOST_SIGNS):
        if position < 0:
            break
        before = text[max(start, position - _MOST_BACKSLASHES) : position]
        escapes = len(before) - len(before.rstrip("\\"))
        if escapes < _MOST_BACKSLASHES and escapes % (2 * (backslashes + 1)) == backslashes:
            return position - backslashes
        position = text.find(quote, position + 1)
    return len(text)


def _bracket_end(text: str, start: int) -> int:
    """Return where the bracket at *start* is closed; quotes are not looked at, so rather too late than too early."""
    depth = 0
    for match in islice(_BRACKET.finditer(text, start), _MOST_SIGNS):
        depth += 1 if match.group() in "[{" else -1
        if depth == 0:
            return match.end()
    return len(text)
