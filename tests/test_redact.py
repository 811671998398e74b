"""Secrets stay home: what is planted anywhere in what is recorded is in no byte that leaves, and the rest is untouched."""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import threading
import time
from random import Random
from urllib.parse import quote, quote_plus

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from patience import within

import prefactor_trace as pt
from prefactor_trace import _guard, _redact
from prefactor_trace._capture import Limits, capture, capture_exception, capture_object
from prefactor_trace._redact import Redactor
from prefactor_trace._secrets import Words, words_of
from prefactor_trace.exporters import FileExporter, MemoryExporter
from prefactor_trace.server import LocalPlatform

MIXED = "Ab3dE5fG7hI9jK1lM2nO4pQ6rS8tU0vWx"
HEX = "0123456789abcdef" * 3
KEY = f"-----BEGIN RSA PRIVATE KEY-----\nMIIE{MIXED}\n{MIXED}==\n-----END RSA PRIVATE KEY-----"

# What is planted: the text around the secret, with the secret itself, which is what must not survive.
SHAPES = {
    "fireworks": f"fw_{MIXED}",
    "nvidia": f"nvapi-{MIXED}",
    "mapbox": f"sk.eyJ1Ijoi{MIXED}",
    "docker": f"dckr_pat_{MIXED}",
    "postman": f"PMAK-{HEX}",
    "figma": f"figd_{MIXED}",
    "doppler": f"dp.pt.{MIXED}",
    "pulumi": f"pul-{HEX}",
    "rubygems": f"rubygems_{HEX}",
    "openai": f"sk-{MIXED}",
    "openai project": f"sk-proj-{MIXED}_x-{MIXED}",
    "anthropic": f"sk-ant-api03-{MIXED}",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "aws temporary": "ASIAIOSFODNN7EXAMPLE",
    "github": f"ghp_{MIXED}",
    "github oauth": f"gho_{MIXED}",
    "github fine-grained": f"github_pat_{MIXED}",
    "gitlab": f"glpat-{MIXED[:20]}",
    "slack": f"xoxb-123456789012-{MIXED}",
    "stripe": f"sk_live_{MIXED}",
    "stripe restricted": f"rk_live_{MIXED}",
    "stripe webhook": f"whsec_{MIXED}",
    "google": f"AIza{MIXED}ab",
    "huggingface": f"hf_{MIXED}",
    "twilio": f"SK{HEX[:32]}",
    "sendgrid": f"SG.{MIXED[:22]}.{MIXED}",
    "npm": f"npm_{MIXED}abc",
    "pypi": f"pypi-AgEIcHlwaS5vcmc{MIXED}",
    "databricks": f"dapi{HEX[:32]}",
    "digitalocean": f"dop_v1_{HEX}",
    "telegram": f"123456789:AA{MIXED}",
    "discord": "MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcdE.abcdefghijklmnopqrstuvwxyz0",
    "jwt": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{MIXED}",
    "jwt, indented": f"ewogICJhbGciOiJIUzI1NiJ9.ewogICJzdWIiOiIxIn0.{MIXED}",
    "google refresh": f"1//0g{MIXED}_{MIXED}",
    "private key in base64": f"LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpN{MIXED}==",
    "private key": KEY,
    "prefactor": f"pf_{MIXED}",
}
CONTEXTS = {
    "curl": ("curl -s -u admin:{} https://x.example/z", "can4ry!x"),
    "curl, glued": ("curl --user 'admin:{}' https://x.example", "can4ry!x"),
    "mysql": ("mysql -h db -u root -p{} main", "can4ry!x"),
    "sshpass": ("sshpass -p {} ssh host", "can4ry!x"),
    "docker login": ("docker login -u me -p {} registry.example", "can4ry!x"),
    "redis-cli": ("redis-cli -h host -a {} ping", "can4ry!x"),
    "ldapsearch": ("ldapsearch -D cn=admin -w {} -b dc=x", "can4ry!x"),
    "netrc": ("machine api.example.com login ann password {}", "can4ry!x"),
    "netrc, lines": ("machine api.example.com\n  login ann\n  password {}\n", "can4ry!x"),
    "repr of a pair": ("headers ('password', '{}')", "can4ry!x"),
    "repr of bytes": ("headers (b'authorization', b'Token {}')", "can4ryABCdef"),
    "mailchimp": ("use {} for it", f"{HEX[:32]}-us12"),
    "said": ("my password is {}", "can4ry!x"),
    "SSWS": ("Authorization: SSWS {}", "00can4ryABCdef"),
    "bearer": ("Authorization: Bearer {}", f"t0{MIXED}"),
    "basic": ("curl -H 'Authorization: Basic {}'", "dXNlcjpodW50ZXIy"),
    "url": ("postgres://admin:{}@db.example.com:5432/prod", "hunt@er/2"),
    "url with a quote": ("postgres://u:{}@host/db", "S3cret'Pw99"),
    "url with another quote": ("postgres://u:{}@host/db", 'S3cret"Pw99'),
    "redis": ("redis://:{}@localhost", "hunter2"),
    "query": ("https://x.example/?a=1&api_key={}&b=2", "q1w2e3"),
    "signature": ("https://x.blob.example/f?sv=1&sig={}&se=2", "abcdEFGH1234567890%2B"),
    "json": ('{{"user": "u", "password": "{}"}}', "corr horse"),
    "python": ("{{'client_secret': '{}', 'x': 1}}", "aa bb"),
    "environment": ("HOME=/root\nDB_PASSWORD={}\nPATH=/bin", "a b,c;d&e=f"),
    "odbc": ("Server=db;Password={};Port=1", "can,ary-odbc"),
    "azure": ("DefaultEndpointsProtocol=https;AccountKey={};Suffix=x", "abcd+/efgh=="),
    "header": ("X-Api-Key: {}", "zzz-111"),
    "cookie": ("GET /\r\nCookie: {}\r\nHost: x", "sid=abc; theme=dark"),
    "yaml": ("host: x\npassword: {}\n", "hunter2"),
    "markdown": ("- **Password:** {}", "hunter-22"),
    "markdown, outside": ("**API key**: {}", "hunter-22"),
    "tabs": ("api_key\t=\t{}", "q1w2e3"),
    "wide spaces": ("password\xa0=\xa0{}", "q1w2e3"),
    "bearer on two lines": ("it sent Bearer\n{}", f"t1{MIXED}"),
    "a name in the value": ("pwd={}", "mypassword"),
    "bearer, coloured": ("it sent \x1b[1mBearer {}\x1b[0m today", f"t0{MIXED}"),
    "bearer, encoded": ("?h=%22Bearer%20{}%22", f"t0{MIXED}"),
    "bearer alone": ("it sent Bearer {} today", f"t0{MIXED}"),
    "digest": ('Authorization: Digest user="u", response="{}"', "e2r4t6"),
    "command line": ("run --password {} --limit 5", "q1w2e3"),
    "tag": ("<user>u</user><password>{}</password>", "q1 w2 e3"),
    "two words": ("API key: {}", "q1w2e3"),
    "keyword": ("Client(api_key='{}')", "abc def"),
}
NAMES = (
    "authorization proxy-authorization Authorization api_key apikey api-key x-api-key X-API-Key openaiApiKey "
    "OPENAI_API_KEY password passwd pwd dbPassword PGPASSWORD password_1 secret client_secret clientSecret token access_token "
    "refreshToken id_token github_token session cookie set-cookie Set-Cookie private_key credential credentials "
    "DD_APP_KEY DATADOG_APP_KEY DD-APPLICATION-KEY AZURE_STORAGE_KEY AZURE_SEARCH_ADMIN_KEY SPEECH_KEY SECRET_KEY_BASE "
    "RABBITMQ_DEFAULT_PASS REDISCLI_AUTH NEO4J_AUTH SSHPASS GMAIL_PASS JIRA_PASS GITLAB_PAT AZURE_DEVOPS_PAT FERNET_KEY "
    "jwt_key aes_key hmac_key keystorePass SecretBinary NEW_RELIC_LICENSE_KEY SUPABASE_SERVICE_ROLE_KEY client-key-data "
    "googleCredentials passphrase connection_string ConnectionString aws_secret_access_key jwt auth Passwords"
).split()
NO_NAMES = (
    "max_tokens token_usage prompt_tokens completion_tokens total_tokens tokenizer token_count tokens secretary author "
    "authors session_id authority authenticated next_page_token nextPageToken eos_token pad_token key public_key "
    "primary_key cache_key keyboard monkey bypass compass passenger passed cwd aws_access_key_id secret_name "
    "primaryKey storage_key search_key app_key license_key pat path compat tls_key default_auth_type first_pass "
    "password_length cookie_consent tokens_per_second private_key_id accessibility"
).split()
PROSE = [
    "sort -u a:b, docker run -u 1000:1000 -p 8080:80, git push -u origin main:main",
    "machine learning, login flow, password reset; the login password works",
    "see the --password option, pass --token to the tool, redis-cli -a is for that",
    "the fields ('password', 'username', 'email'), ('token', 'str'), the password is required",
    "The secret of a good soup is the stock, and the password is to be patient.",
    "risk-adjusted-portfolio-management-for-beginners and disk-usage-monitoring",
    "Set max_tokens=100 and token_count: 5, then call task-runner-with-a-long-name.",
    "basic understanding of bearer bonds; bearer of bad news",
    "{'url':'http://host:8080','mail':'a@b.example'} ['http://host:x','a@b.example']",
    "http://localhost:8080/users/a@b.example and mailto:a@b.example",
    "api_key=os.environ['OPENAI_API_KEY']; password=getpass(); token = settings.token",
    "password: required, token: expired, secret: missing",
    "def f(token: str, password: str | None = None, *, api_key: str): ...",
    "if (password == null) return; token=token; self.password = password",
    "The session: it begins at nine. Cookies are baked.",
    "import sklearn; from hf_hub import x; SKU 12345, SG.com, AIzawa, sk-learn",
    "token = tokenizer.decode(ids); secret = hmac.new(key, msg); session = Session(engine); token = tokens[i]",
    "def f(password: Optional[str] = None, token: Token, secret: list[str] = ()): self.password=user.password",
    "password: at least 8 characters; API key: get one at https://x.example; Secret: keep your promises",
    "API_KEY=your-api-key-here\nand --token=<your-token>; token = await client.get_token(scope)",
    "PWD=/home/user OLDPWD=/x; pass: yes, pass=3",
    "password:\n  required: true\n  min_length8: 8\ntoken:\nuser_id\nsecret:\n  - at least 12 characters\n",
    "if not api_key:\n    exit_1_now\nwhile not token:\n    time.sleep(1)\nfor secret in secrets:\n    b64decode2",
    "apiKey:\n  process.env.KEY_2\ntoken:\n  getToken2(),\npassword:\n  ${DB_PASSWORD_1}\nsecret:\n  {{.Values.db1}}",
    "secrets:\n  - db-password-v2\nauthorization:\n  oauth2-proxy\nAPI key:\nplatform1.example.com/keys",
    "Access token:\nHTTP/1.1\nChecking token:\nstatus=200\nWrong password:\n/home/user1/file\nPassword:\n[user1@host",
    "Password:\n半角英数字8文字以上でA-Zを含む\ntoken:\n```python3\n**Password:** required. **Token:** the second",
    "bash: sshpass: command not found; the primary key: id; https://x.example//0g/a.b; e2e.eyJ-ewog.",
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUM LS0tLS1CRUdJTiBSU0EgUFVCTElDIEtFWS0tLS0tCk1JSQ and Private-Lines",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b uuid 123e4567-e89b-12d3-a456-426614174000",
]


def recorded(value):
    return capture({"value": value})


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_secret_under_its_name(self, name):
        """A value under a name that says it is secret goes whole, whatever it is."""
        for value in ("canary", 4711.25, ["canary"], {"x": {"y": "canary"}}):
            if isinstance(value, float) and "token" in name.lower():
                continue
            kept = recorded({name: value, "other": 1})
            assert b"canary" not in kept, kept
            assert orjson.loads(kept)["value"]["other"] == 1
        assert list(orjson.loads(recorded({name: "canary"}))["value"][name]) == ["$redacted", "hash"]

    @pytest.mark.parametrize("name", NO_NAMES)
    def test_look_alikes(self, name):
        """Names that only look like it are left alone: payloads of models are full of them."""
        value = {"value": {name: "some text", "n": [{name: 12}]}}
        assert capture(value) == orjson.dumps(value)

    def test_flags_counts_schemas_and_pieces_of_text(self):
        """Nor are truth values, counts of tokens, a tool's schema and the pieces of text a model returns."""
        value = {
            "has_password": True,
            "secret": False,
            "password": None,
            "api_key": "",
            "token": 17,
            "tools": [{"properties": {"password": {"type": "string", "description": "The password"}}}],
            "logprobs": [{"token": " Hello", "logprob": -0.5}],
        }
        assert capture(value) == orjson.dumps(value)

    def test_headers_as_pairs(self):
        """Headers are lists of pairs, too."""
        assert b"canary" not in recorded([["Authorization", "canary"], ["X-Api-Key", "canary"]])
        assert b"canary" not in recorded([("Cookie", "canary")])
        for fields in ({"name": "Authorization", "value": "canary"}, {"value": "canary", "key": "X-Api-Key"}):
            assert b"canary" not in recorded([fields])

    def test_keys_can_be_added_and_taken_out(self):
        """`redact_keys` adds names in any way of writing, "-name" takes one out, "-*" all."""
        ours = Limits(redact=Redactor(("colourCode", "contraseña", "-password")))
        value = {"COLOUR_CODE": "a1", "contraseña": "b2", "password": "c3", "api_key": "d4"}
        assert [name for name, kept in orjson.loads(capture(value, ours)).items() if type(kept) is str] == [
            "password"
        ]
        only = Limits(redact=Redactor(("-*", "ssn")))
        assert orjson.loads(capture({"password": "a", "ssn": "b"}, only))["password"] == "a"
        assert b'"b"' not in capture({"password": "a", "ssn": "b"}, only)

    @pytest.mark.parametrize("key", ["my_customer_tax_identification_number", "nationalIdCardNumberBack"])
    def test_a_key_of_many_words(self, key):
        """A name of any number of words counts, alone and behind others."""
        ours = Limits(redact=Redactor((key,)))
        for name in (key, words_of(key).upper(), f"old-{key}", f"{key}_2"):
            assert b"canary" not in capture({name: "canary"}, ours)
            assert b"canary" not in capture(f"x {name}=canary", ours)
        assert b"canary" in capture({key.partition("_")[2] or key[8:]: "canary"}, ours)

    @pytest.mark.parametrize(
        "value",
        [
            {"token": {"id": 5, "text": " the", "logprob": -0.1}},
            {"event": "token", "token": "the"},
            {"token": "Hello", "prob": 0.5},
            {"pass": "yes"},
            {"pwd": "/home/user"},
            {"required": ["password", "username"]},
            {"token": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Token"}},
            {"password": {"type": ["string", "null"], "enum": ["a"], "description": "yours"}},
            {"secret": {"$ref": "#/$defs/Secret"}},
            {
                "credentials": {
                    "type": "object",
                    "properties": {"user": {"type": "string"}},
                    "required": ["user"],
                }
            },
        ],
        ids=str,
    )
    def test_what_is_no_secret_under_such_a_name(self, value):
        """Pieces of text, outcomes, places and schemas stay as they are."""
        assert orjson.loads(recorded([value]))["value"] == [value]

    @pytest.mark.parametrize(
        "value",
        [
            {"password": {"type": "canary"}},
            {"password": {"type": "string", "title": {"x": "canary"}}},
            {"password": {"type": "string", "default": "canary"}},
            {"password": {"anyOf": [{"type": "string", "const": "canary"}]}},
            {"password": {"type": "string", "value": "canary"}},
            {
                "credentials": {
                    "type": "string",
                    "description": f"canary sk-{MIXED}"[7:],
                    "examples": ["canary"],
                }
            },
            {"env": [{"Name": "DB_PASSWORD", "Value": "canary"}]},
            {"env": [{"Field": "password", "value": "canary"}]},
            {"event": "token", "token": "c4nary-canary"},
            [["Authorization", "canary"], ["x", "y"]],
            ["Authorization", "canary-1"],
            *({name: "canary"} for name in ("SecretString", "OPENAI_KEY", "AZURE_OPENAI_KEY", "OpenAIKey")),
        ],
        ids=str,
    )
    def test_what_only_looks_harmless(self, value):
        """A schema with more in it than a schema has is none, and names beside values come in any case."""
        kept = recorded([value])
        assert b"canary" not in kept
        assert MIXED.encode() not in kept

    def test_switched_off(self):
        """Without redaction all is recorded as it is."""
        value = {"password": f"sk-{MIXED}"}
        assert capture(value, Limits(redact=Redactor(is_on=False))) == orjson.dumps(value)


class TestText:
    @pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
    def test_shapes(self, secret):
        """A key of a known provider goes whole, in text, as a key, and one level of JSON down."""
        for value in (
            secret,
            f"before {secret} after",
            f"({secret}),",
            f"a={secret}&b",
            {secret: 1},
            json.dumps({"x": secret}),
            json.dumps({"x": f"first\n{secret}"}),
            json.dumps(json.dumps({"x": f"first\t{secret}"})),
            f"a\0{secret}",
            f"\x1b[32m{secret}\x1b[0m",
            f"\x1b[01;31m\x1b[K{secret}\x1b[m\x1b[K",
            json.dumps(f"\x1b[38;5;196m{secret}\x1b[0m"),
            f"https://x.example/?q=%22{secret}%22&to=%20{secret}",
            f"%3A{secret}",
            repr(b"\x00" + secret.encode()),
            repr("\x7f" + secret),
        ):
            kept = recorded(value)
            assert secret.encode() not in kept
            assert orjson.dumps(secret)[1:-1] not in kept
            assert MIXED[8:24].encode() not in kept

    @pytest.mark.parametrize(("text", "secret"), CONTEXTS.values(), ids=CONTEXTS)
    def test_contexts(self, text, secret):
        """What stands after a name or inside a URL goes, all of it, and what is around it stays."""
        kept = orjson.loads(recorded(text.format(secret)))["value"]
        assert secret not in kept
        assert [part for part in secret.replace("/", " ").split() if len(part) > 3 and part in kept] == []
        assert kept.startswith(text.split("{}")[0].replace("{{", "{").split(" ")[0][:4])
        assert "[redacted:" in kept

    @pytest.mark.parametrize(
        "text",
        [
            "password:\n  {}\nuser: u",
            "db:\n  password: >-\r\n    {}\r\n  user: u",
            "password: |\n  {}",
            "api_key:\n  {}",
            "Hello,\n\nYour new password:\n\n{}\n\nKind regards",
            "> Token:\n{}\n",
        ],
    )
    @pytest.mark.parametrize("secret", ["h8nter-22xY,Q", "c4nary77Xy" * 20, "c4n+ry/77Xyz=="])
    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_a_secret_below_its_name(self, text, secret, depth):
        """What stands alone on the line below goes, all of it, also in JSON inside of a text."""
        whole = text.format(secret)
        for _ in range(depth):
            whole = json.dumps({"x": whole})
        kept = orjson.loads(recorded(whole))["value"]
        assert [piece for piece in (secret, secret[:6], secret[-6:]) if piece in kept] == []
        assert "[redacted:" in kept
        assert text.format("").split("\n")[0].strip() in kept

    def test_a_password_of_words_below_its_name(self):
        """People make passwords of words and numbers; what else is called so is a name."""
        assert "hunter22" not in recorded("password:\n  hunter22").decode()
        assert "oauth2-proxy" in recorded("authorization:\n  oauth2-proxy").decode()

    @pytest.mark.parametrize("text", PROSE)
    def test_prose_and_code_stay_as_they_are(self, text):
        """Text about secrets is no secret."""
        assert orjson.loads(recorded(text))["value"] == text

    def test_a_url_keeps_all_but_its_password(self):
        """Of a URL only the password goes."""
        kept = orjson.loads(recorded("see https://bob:hunter2@x.example/p?q=1 now"))["value"]
        assert kept.startswith("see https://bob:[redacted:password:")
        assert kept.endswith("]@x.example/p?q=1 now")

    @pytest.mark.parametrize("length", [250, 300, 700, 1_000, 3_000])
    def test_a_long_token_in_a_url(self, length):
        """Tokens stand in URLs as well; they are found wherever in a text they are, and where it was cut."""
        token = (MIXED * 100)[:length]
        for before in range(0, 1_100, 61):
            text = f"{'x ' * before}https://aws:{token}@x.example/pypi/ {'y ' * 600}"
            for kept in (recorded(text), capture([text], Limits(max_string=2 * before + length))):
                assert MIXED[:8].encode() not in kept
            assert b"[redacted:" in recorded(text)

    @pytest.mark.parametrize("depth", [0, 1, 2, 3])
    def test_quotes_at_any_depth_of_json(self, depth):
        """A value in JSON inside JSON ends at its own quote, whatever quotes and backslashes are in it."""
        text = json.dumps({"api_key": 'can"ary\\ x', "after": "stays"})
        for _ in range(depth):
            text = json.dumps(text)
        kept = recorded(text)
        assert b"can" not in kept
        assert b"ary" not in kept
        assert b"stays" in kept

    @pytest.mark.parametrize("name", ["api_key", "secret_key", "ntoken_x_token", "password", "X-Api-Key"])
    @pytest.mark.parametrize("before", ["\n", "\r\n", "\t", "\n\t", "\n\n  "])
    def test_a_name_behind_an_escape(self, name, before):
        """In JSON a line's end is a backslash and a letter, which is none of the name on the next line."""
        for separator in ("=", ": "):
            text = json.dumps({"log": f"started{before}{name}{separator}c4nary22{before}ended"})
            for value in (text, json.dumps(text)):
                assert b"c4nary22" not in recorded(value)
        for text in (f"?q=x%26{name}%3Dc4nary22", f"\x1b[1;32m{name}=c4nary22", f"\x1b[m{name}=c4nary22"):
            assert b"c4nary22" not in recorded(text)

    @pytest.mark.parametrize(
        "text",
        [
            "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: x\n{}\n{}\n---- END SSH2 ENCRYPTED PRIVATE KEY ----",
            "PuTTY-User-Key-File-3: ssh-rsa\nPublic-Lines: 1\nAAAA\nPrivate-Lines: 2\n{}\n{}\nPrivate-MAC: 0a1b",
        ],
    )
    def test_private_keys_of_others(self, text):
        """PuTTY and SSH2 write private keys in ways of their own."""
        for whole in (text, json.dumps(text)):
            kept = recorded(f"see {whole.format(MIXED, MIXED)} and more")
            assert MIXED.encode() not in kept
            assert b"and more" in kept

    def test_a_private_key_in_lines(self):
        """A private key goes even if it was split into a list of lines."""
        assert MIXED.encode() not in recorded([*KEY.splitlines(), "after"])
        assert b"after" in recorded([*KEY.splitlines(), "after"])

    def test_equal_secrets_can_be_recognised(self):
        """Equal secrets have equal hashes, in text and under a name; others have others."""
        kept = recorded([{"token": f"ghp_{MIXED}"}, f"use ghp_{MIXED}", f"use ghp_{MIXED}Z"])
        first, second, third = orjson.loads(kept)["value"]
        hash_ = first["token"]["hash"]
        assert second == f"use [redacted:github_token:{hash_}]"
        assert hash_ not in third


SECRET = "S3cretPw99"
COMMANDS = {
    "option": ["psql", "--password", SECRET, "-h", "x"],
    "option with a number before": ["tool", "--port", 5, "--api-key", SECRET],
    "option at the end": ["--password", SECRET],
    "curl": ["curl", "-u", f"bob:{SECRET}", "https://x"],
    "wget": ["/usr/bin/wget", f"--user=bob:{SECRET}"],
    "http": ["http", "-a", f"bob:{SECRET}", "x"],
    "docker": ["sudo", "docker", "login", "-u", "bob", "-p", SECRET],
    "mysql": ["mysql", "-uroot", f"-p{SECRET}", "main"],
    "sshpass": ["sshpass", "-p", SECRET, "ssh", "host"],
    "redis-cli": ["redis-cli", "-h", "host", "-a", SECRET],
    "ldapsearch": ["ldapsearch", "-w", SECRET],
    "shell": ["bash", "-c", f"mysql -p{SECRET} main"],
    "header": ["curl", "-H", f"X-Api-Key: {SECRET}"],
}


class TestCommands:
    @pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
    def test_arguments(self, command):
        """What is secret in one string is so in a list, too, and in what JSON and `repr` make of it."""
        as_json = json.dumps({"command": command})
        for value in (command, tuple(command), f"Command '{command}' failed", as_json, json.dumps(as_json)):
            kept = recorded(value)
            assert SECRET.encode() not in kept
            assert b"redacted" in kept
        assert SECRET.encode() not in recorded(["x" * 60] * 40 + command)

    def test_what_an_error_says(self):
        """The error of a command that failed names it."""
        for command in COMMANDS.values():
            assert SECRET.encode() not in capture_exception(subprocess.CalledProcessError(1, command))
            assert SECRET.encode() not in capture_exception(subprocess.TimeoutExpired(command, 5))

    @pytest.mark.parametrize(
        "command",
        [
            ["tool", "--api-key", "S3cret two 'words'", "-x"],
            ["tool", "--api-key=S3cret two 'words'", "-x"],
            ["docker", "run", "-e", "DB_PASSWORD=S3cret two words", "-x"],
        ],
    )
    def test_an_argument_goes_whole(self, command):
        """A secret with spaces and quotes in it goes to the argument's end; the others stay."""
        kept = orjson.loads(recorded(command))["value"]
        assert not [each for each in ("S3cret", "two", "words") if each in str(kept)]
        assert kept[-1] == "-x"
        assert b"4711" not in recorded(["tool", "--password", 4711])

    @pytest.mark.parametrize(
        "command",
        [
            ["sort", "-u", "a:b"],
            ["tool", "--user", "--password", "--host"],
            ["tool", "--token", "the token to use", "--password", "required"],
            ["docker", "run", "-u", "1000:1000", "-p", "8080:80"],
            ["mysql", "-h", "x", "-P", "3306", "-p"],
            ["tool", "--password", None, "--api-key", True, "--token", 12, "--secret", {"a": 1}],
            ["tool", "--password", "PASSWORD", "--token", "$TOKEN", "--api-key", "<key>"],
            ["git", "push", "-u", "origin", "main"],
        ],
    )
    def test_other_arguments_stay(self, command):
        """Options alone, what is said of them, and what stands for a value are no secrets."""
        for value in (command, str(command), json.dumps(command)):
            assert orjson.loads(recorded(value))["value"] == value

    def test_headers_in_one_list(self):
        """Names and values by turns; a list of names is none."""
        kept = orjson.loads(recorded(["Host", "a", "X-Api-Key", SECRET, "Accept", "*/*"]))["value"]
        assert kept[3]["$redacted"] == "api_key"
        assert [each for each in kept if type(each) is str] == ["Host", "a", "X-Api-Key", "Accept", "*/*"]
        for names in (
            ["Authorization", "X-B3-TraceId", "Content-MD5", "Accept"],
            ["password", "Content-MD5", "x y", "*"],
        ):
            assert orjson.loads(recorded(names))["value"] == names


class TestCut:
    @pytest.mark.parametrize("secret", [each for each in SHAPES.values() if each != KEY])
    def test_no_part_is_left_where_a_text_was_cut(self, secret):
        """A secret across the end of what is kept does not leave the beginning of what is secret in it."""
        needle = next(each for each in (MIXED[:4], HEX[:6], "OSFO", "Gabc") if each in secret)
        for end in range(secret.index(needle) + 4, len(secret)):
            text = "x " * 20 + "y " + secret
            limits = Limits(max_string=len(text) - len(secret) + end)
            kept = capture([text], limits).decode()
            assert "$truncated" in kept
            assert needle not in kept

    @pytest.mark.parametrize(
        "text",
        [
            "password=q1-q1-q1",
            '{"api_key": "q1-q1-q1',
            "https://u:q1-q1-q1@host",
            "Bearer q1-q1-q1-q1-q1-q1",
            "<password>q1-q1-q1",
            "<password>q1-q1-q1</password>",
            "<password><![CDATA[q1-q1-q1]]></password>",
            '("password", "q1-q1-q1")',
            "['password', 'q1-q1-q1']",
        ],
    )
    def test_values_that_were_cut(self, text):
        """Nor does the value of a name, the password of a URL, or a credential."""
        for end in range(text.index("q1") + 2, len(text)):
            assert "q1" not in capture(["-" * 20 + " " + text], Limits(max_string=21 + end)).decode()

    def test_what_a_mark_has_hidden(self):
        """Nor the beginning of what is marked `Secret`, where an argument of an error was cut, in a text or in a dict."""
        secret = "c4nary22 of 'two' words"
        for length in range(700, 760, 3):
            for value in ("y" * length + secret + "z" * 3_000, f"{'y' * length}{secret}"):
                for error in (
                    ValueError(value),
                    ValueError({"body": value}),
                    ValueError([{"a": {"b": value}}]),
                ):
                    kept = capture_exception(error, Limits(max_string=750), hidden=(secret,))
                    assert b"c4nary" not in kept

    @pytest.mark.parametrize("secret", SHAPES.values())
    def test_no_part_is_left_where_the_end_of_a_text_begins(self, secret):
        """A secret across the beginning of the end that is kept leaves nothing of its second half."""
        needle = "0vWx" if secret == KEY else secret[-8:-2]
        for place in range(len(secret) + 40):
            text = "x " * 400 + "password: " + secret + " " + "y " * 50
            kept = capture([text], Limits(max_string=4 * (100 + place))).decode()
            assert needle not in kept

    @pytest.mark.parametrize("secret", [each for each in SHAPES.values() if each != KEY])
    def test_both_ends_of_a_cut_text_are_searched(self, secret):
        """What is cut of a long text is searched in its beginning, up to the cut, and in its end."""
        for kept_of_it in (8, 12, 20):
            head = "x " * 3_750
            text = head[: 7_500 - kept_of_it] + f" {secret} " + "y " * 5_000 + "\npassword: canary z\n"
            kept = capture([text])
            assert b'"tail"' in kept
            assert secret[-12:].encode() not in kept
            assert b"canary" not in kept
        assert secret.encode() not in capture(["x " * 10_000 + f"{'y ' * 50} {secret} end"])

    @pytest.mark.parametrize(
        "text",
        [
            "machine git.example.com\nlogin bob\npassword {}\n",
            "\npassword:\n  {}\n",
            'password: "line one\nline two {}"',
            '"seed_phrase": "abandon ability about above absent absorb abstract absurd abuse access accident {}"',
            "docker login registry.example-of-a-quite-long-name.internal.example.com:5000/v2/team -u bob -p {} ",
            "curl -sS --retry 3 --connect-timeout 30 --output /dev/null --user bob:{} https://x ",
        ],
    )
    @pytest.mark.parametrize("between", [" ", "\n"])
    def test_where_the_end_of_a_text_begins_behind_a_name(self, text, between):
        """What stands before the end that is kept is looked at, too: the name of a secret can be there."""
        whole = text.format("c4naryXY22")
        for place in range(0, len(whole), 3):
            start = f"x{between}" * 1_250
            cut = f"{start[: 2_499 - place]}{between}{whole}{between}".ljust(2_900, "y") + f"{between}z" * 50
            kept = capture([cut], Limits(max_string=4 * (len(cut) - 2_500)))
            assert b"c4nary" not in kept

    def test_a_dict_that_looks_like_a_cut_text(self):
        """A dict of the user's that has the marker's entries is searched like any other."""
        for more in ({"password": "canary"}, {"tail": {"password": "canary"}}, {"tail": "password=canary"}):
            assert b"canary" not in capture({"r": [{"$truncated": "a", "length": 3, **more}]})

    def test_a_key_of_a_dict_that_was_cut(self):
        """Nor does a key."""
        assert b"3dE5" not in capture({"x " * 10 + f"sk-{MIXED}": 1}, Limits(max_string=32))


class TestErrors:
    @pytest.mark.parametrize(
        "secret", ["pässwörd-geheim", "tab\tand 'quotes' & more", "a/b+c=d?e", "plain22"]
    )
    def test_what_a_mark_has_hidden_in_other_writings(self, secret):
        """What is marked `Secret` is taken out of messages however it is written there."""
        writings = [
            json.dumps({"k": secret}),
            json.dumps({"k": secret}, ensure_ascii=False),
            ascii(secret),
            repr(secret),
            str(secret.encode()),
            f"https://x.example/?q={quote(secret)}&r={quote_plus(secret)}",
            quote(secret, safe="").replace("%C3", "%c3").replace("%A4", "%a4").replace("%B6", "%b6"),
        ]
        for writing in writings:
            kept = orjson.loads(capture_exception(ValueError(f"no {writing} there"), hidden=(secret,)))[
                "message"
            ]
            assert "Secret]" in kept
            assert not [part for part in ("geheim", "quotes", "c=d", "c%3Dd", "plain") if part in kept]

    def test_message_arguments_and_stack(self):
        """An exception's message, its arguments, its causes and its stack text are searched like all else."""
        try:
            try:
                raise KeyError(f"no sk-{MIXED}")
            except KeyError as cause:
                raise ValueError(f"bad ghp_{MIXED}", {"password": "canary"}, "api_key=canary") from cause
        except ValueError as error:
            kept = capture_exception(error)
        assert MIXED.encode() not in kept
        assert b"canary" not in kept
        assert set(orjson.loads(kept)) == {"error_type", "message", "stacktrace"}

    @pytest.mark.parametrize("more", [(), (42,), ("x",)])
    def test_a_secret_where_a_part_of_the_text_was_cut(self, more):
        """No beginning of a secret is left where an argument, a cause or a member's line was cut."""
        for secret in ("postgres://admin:S3cretPassw0rd@db/x", f"sk-ant-api03-S3cret{MIXED}"):
            for at in (300, 1_000):
                for end in range(secret.index("S3cret") + 3, len(secret), 4):
                    text = "x " * 600
                    text = f"{text[: at - end]}{secret} and more, {text}"
                    error = RuntimeError("outer")
                    error.__cause__ = ValueError(text, *more)
                    for each in (error, ValueError(text, *more), FileNotFoundError(2, text, text)):
                        assert b"S3c" not in capture_exception(each)
                        assert b"S3c" not in capture([each])

    def test_long_messages(self):
        """Also where the message or its line in the stack text is cut."""
        for length in range(230, 320, 7):
            kept = capture_exception(ValueError("m " * (length // 2) + f"sk-ant-api03-{MIXED}"))
            assert b"api03-Ab3dE5" not in kept


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def planted(value, secret, path):
    """Put *secret* into *value*, into the container or text that *path* leads to."""
    if isinstance(value, dict):
        name = list(value)[path[0] % len(value)] if value else "new"
        return (
            {**value, name: planted(value.get(name), secret, path[1:])} if path[1:] else {**value, secret: 1}
        )
    if isinstance(value, list):
        at = path[0] % (len(value) + 1)
        inner = planted(value[at], secret, path[1:]) if at < len(value) and path[1:] else secret
        return [*value[:at], inner, *value[at + 1 :]]
    return f"{value} {secret} {value}" if path[0] % 2 else secret


@settings(max_examples=150, deadline=None)
@given(
    JSON,
    st.sampled_from(sorted(SHAPES.values())),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.booleans(),
)
def test_a_planted_secret_never_survives(value, secret, path, as_text):
    """Wherever in a value a secret stands, and however deep, it is gone."""
    value = planted(value, secret, path)
    kept = recorded(json.dumps(value) if as_text else value)
    assert MIXED[4:20].encode() not in kept
    assert secret.encode() not in kept
    orjson.loads(kept)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(CONTEXTS)),
    st.text(max_size=30),
    st.text(max_size=30),
    st.integers(0, 2),
)
def test_what_is_found_is_suspected(name, before, after, depth):
    """The quick question is never narrower than the close look: nothing is missed for speed."""
    text, secret = CONTEXTS[name]
    whole = f"{before} {text.format(secret)} {after}"
    for _ in range(depth):
        whole = json.dumps(whole)
    words = Words()
    if words.find(whole):
        assert words.suspect(orjson.dumps(whole))


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_clean_values_are_untouched(value):
    """What holds no secret comes out byte for byte, the first time and again."""
    assume(b"\\u0000" not in orjson.dumps(value))  # which capture escapes once more
    ours = Limits(redact=Redactor(("-*",)))
    assert capture([value], ours) == capture([value], ours) == orjson.dumps([value])


_WORDS = "all work and no play makes jack a dull boy with many a plan for the week".split()


class TestCost:
    @pytest.mark.parametrize(
        "piece",
        [
            "sk-", "eyJ", "-eyJabc.", "://a:", "=", "password=", 'password="\\', "\\", "bearer ", ",a", "AKIA-", "password={",
            "-----BEGIN PRIVATE KEY", "12345678:", "key='", "[", '"', "a.", "xoxb-1", "token: ", "Basic QUJD", "cookie: a;", "@",
            "password=os.a", "token=1.", "pwd=a&", "password=none;", "://a:b@", "<password>", '"password": "password" ',
            "'--password', ", "mysql ", "'mysql', ", "curl -u a", '"-u","', "\x1b[0m", "%22", '<password a="', '"value":"a",', 'password="""',
        ],
    )  # fmt: skip
    def test_time_per_byte_is_flat(self, piece):
        """No text makes the search turn back: 16 times as much takes little more than 16 times as long."""

        def seconds(length):
            text = (piece * length)[:length]
            return min(timed(words.find, text) for _ in range(3)) + 2e-4

        words = Words()
        assert seconds(32_000) < 16 * 4 * seconds(2_000)

    def test_digests_cost_what_words_cost(self):
        """Whether a text is worth a closer look is asked of every text; one of digits, each time others, is no harder."""

        def seconds(texts):
            return statistics.median(timed(words.suspect, text) for text in texts)

        words = Words()
        random = Random(1)
        digests = [json.dumps({"pad": random.randbytes(1_000).hex()}) for _ in range(300)]
        prose = [json.dumps({"pad": " ".join(random.sample(_WORDS, 10) * 35)[:2_000]}) for _ in range(300)]
        assert seconds(digests) < 4 * seconds(prose)

    @pytest.mark.parametrize("before", ["", "password='", 'password="', "API_KEY=", "-----BEGIN PRIVATE KEY"])
    @pytest.mark.parametrize(
        "piece", ["password=os.a", "pwd=a&", "token=1.", "\\", '"', "[", "x", "x=", "://:", "a."]
    )
    def test_time_for_one_long_text_is_bounded(self, before, piece):
        """One text of any length takes no longer than the time there is for a value, and little more."""
        text = (before + piece * 200_000)[:200_000]
        ours = Limits(max_string=250_000, redact=Redactor())
        assert min(timed(capture, text, ours) for _ in range(3)) < within(0.02)

    @pytest.mark.parametrize(
        "text",
        [
            "machine a.a.a." * 750,
            "token=os." * 1_100,
            'password="' * 1_000,
            '--token {"token":"' * 550,
            "SKTOKEN=" * 1_250,
            ["--password"] * 1_000,
            ["mysql"] * 1_500,
            ["curl -u a", "-u"] * 700,
            "'--password', " * 700,
            '<a:password a="' * 700,
            '"value": "a", ' * 700,
            '"name": "password", ' * 500,
            {"password is " * 8 + str(n): "abcdefghij" for n in range(200)},
        ],
        ids=lambda text: str(text)[:12],
    )
    def test_the_clock_is_looked_at_all_along(self, text):
        """No step between two looks at the clock takes long, whatever a text is made of."""
        encoded = orjson.dumps(text)

        def seconds():
            redactor = Redactor()
            redactor(b'"password=hunter22"')  # the first that is looked at closely builds the automatons
            return timed(redactor, encoded)

        assert min(seconds() for _ in range(5)) < within(0.002)

    @pytest.mark.parametrize("name", ["1" * 110 + "x_pass", "_0" * 55 + "_token", "1_" * 55 + "x_pass1"])
    def test_no_name_takes_long(self, name):
        """The digits and suffixes of a name are read in one way only, so that no name takes longer than its length."""
        encoded = orjson.dumps({name: "a value"})
        assert min(timed(Redactor(), encoded) for _ in range(10)) < within(0.002)

    @pytest.mark.parametrize(
        "name",
        [
            "password123",
            "password_1_2",
            "password_b6412",
            "api_key_value_2",
            "token_b64_1",
            "password_123456",
        ],
    )
    def test_what_stands_behind_the_words_of_a_name(self, name):
        """Digits and words that do not change what a value is are passed over."""
        assert b"hunter" not in capture({name: "hunter2hunter"})

    def test_what_there_was_no_time_for_is_left_out(self):
        """The end of a text that the time was not enough for is not recorded."""
        kept = capture("password=os.a " * 15_000 + " canary", Limits(max_string=250_000))
        assert b"canary" not in kept
        assert b"[redacted:unsearched:" in kept

    def test_a_value_that_ends_in_its_name(self):
        """A long value is no name, however it ends."""
        text = "password=x" * 900 + "-" * 112 + "password"
        assert b"xpassword" not in capture(text)

    def test_time_for_one_value_is_bounded(self):
        """Where all of a large value is suspect, what there is no time for is left out, unseen."""
        value = [f"password=hunter{n} " * 500 for n in range(25)]
        kept = capture(value)
        assert b"hunter2 " not in kept
        assert b"unsearched" in kept
        assert min(timed(capture, value) for _ in range(3)) < 0.05

    def test_memory_is_bounded(self):
        """What is known to be clean takes a bounded place, and is numbers only."""
        ours = Redactor()
        for n in range(_redact._MOST_KNOWN + 100):
            ours(b'{"some value":%d}' % n)
        assert len(ours._known) <= _redact._MOST_KNOWN
        assert {type(each) for item in ours._known.items() for each in item} == {int}

    @pytest.mark.parametrize("offset", range(0, 9_000, 701))
    def test_secrets_across_pieces(self, offset):
        """A secret between two of the pieces in which large payloads are looked at is found in every position."""
        text = "é" * 500 + "word " * 2_000
        kept = capture({"a": [text[:offset] + f" sk-{MIXED} " + text[offset:9_000], text[:9_000]]})
        assert MIXED.encode() not in kept


def timed(function, *args):
    start = time.thread_time()
    function(*args)
    return time.thread_time() - start


class TestOtherWritings:
    @pytest.mark.parametrize(
        "text",
        [
            f"{{'password': b'{MIXED}'}}",
            f"{{'token': Grant(value='{MIXED}')}}",
            f"[['X-Api-Key', '{MIXED}'], ['Accept', '*/*']]",
            f"{{'name': 'Authorization', 'value': '{MIXED}'}}",
            json.dumps({"name": "api_key", "value": MIXED}),
            json.dumps(json.dumps({"header": "api_key", "value": MIXED})),
            json.dumps([{"name": "password", "value": MIXED}], indent=2),
            json.dumps({"value": MIXED, "key": "password"}),
            json.dumps({"value": MIXED, "type": "x", "Name": "db_password"}, indent=1),
            json.dumps({"name": "password", "type": "text", "value": MIXED}),
            json.dumps(["Authorization", MIXED], indent=1),
            f'password = """{MIXED} x"""\nx=1',
            f"api_key = '''{MIXED}'''",
            f'<add key="Password" value="{MIXED}"/>',
            f'<input value="{MIXED}" name="password">',
            f'<wsse:Password Type="text">{MIXED}</wsse:Password>',
            f"<password><![CDATA[{MIXED}]]></password>",
            f'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n{MIXED}\r\n--x--',
            f"https://host/go?next=%2Flogin%3Fpassword%3D{MIXED}",
            f"?header=Bearer%20{MIXED}",
            f"?url=postgres%3A%2F%2Fann%3A{MIXED}%40host/db",
        ],
    )
    @pytest.mark.parametrize("around", ["{}", "failed: {}, and more", "line\n{}\nline"])
    def test_in_text(self, text, around):
        """What `repr`, JSON and URLs make of a name and its value is recognised in longer text."""
        whole = around.format(text)
        for value in (whole, {"a": [whole]}, json.dumps({"x": whole})):
            assert MIXED.encode() not in capture(value)
        assert MIXED.encode() not in capture_exception(ValueError(whole))

    @pytest.mark.parametrize(
        "text",
        [
            "[['key', 'value'], ['name', 'field']]",
            "{'name': 'city', 'value': 'Amsterdam'}",
            "a%3Db and c%20d",
            "password = call(",
            '<input type="password" name="password" value="Password">',
            '<label name="token">Token</label><tokens count="4">many</tokens>',
            '{"name": "city", "value": "Amsterdam22"}, {"name": "password", "type": "string"}',
            'form-data; name="city"\r\n\r\nAmsterdam22',
            'def f(password="", token="", user="Amsterdam22"): pass',
            "{'password': '', 'city': 'Amsterdam22'}",
        ],
    )
    def test_nothing_else(self, text):
        """What is no secret stays as it is."""
        assert orjson.loads(capture(text)) == text


class TestHook:
    def hooked(self, hook, value, key=b"output"):
        return orjson.loads(capture_object(value, Limits(redact=Redactor((), hook)), key, "step"))

    def test_it_has_the_last_word(self):
        """It is given the data after the built-in search, with where it is, and what it returns is recorded."""
        seen = []

        def hook(value, place):
            seen.append((value, place))
            return {"instead": 1}

        assert self.hooked(hook, {"a": "b", "password": "x"}) == {"instead": 1}
        ((value, place),) = seen
        assert value["a"] == "b"
        assert value["password"]["$redacted"] == "password"
        assert place == pt.Place("result", "step")

    def test_it_is_told_no_secret_in_a_title(self):
        """What a span is called is told to it as it is recorded, for payload, result, error and metadata."""
        places = []

        def hook(value, place):
            places.append(place)
            return value

        tracer = pt.configure(exporter=MemoryExporter(), redact=hook)
        secret = f"sk-{MIXED}"

        @pt.span(title=f"decorated {secret}")
        def fails(x):
            raise ValueError(x)

        with tracer.instance():
            with pt.span("block", title=f"block {secret}", payload={"a": 1}) as step:
                step.set_result({"b": 2})
                step.set_metadata({"c": 3})
            with pytest.raises(ValueError, match="1"):
                fails(1)
        tracer.shutdown()
        assert {place.kind for place in places} == {"payload", "result", "error", "metadata"}
        assert not [place for place in places if MIXED in place.span]
        assert {place.span.split(":")[0] for place in places if place.span} == {
            "block [redacted",
            "decorated [redacted",
        }

    @pytest.mark.parametrize("result", [{1, 2}, object(), float, b"x"])
    def test_no_json(self, result):
        """What it returns must be JSON, else the value is removed."""
        assert self.hooked(lambda *_: result, {"a": "canary"}) == {"$redacted": "by a callable that failed"}

    @pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
    def test_it_raises(self, error):
        """If it raises, the value is removed and counted, and the program goes on."""

        def hook(value, place):
            raise error("canary")

        assert "canary" not in str(self.hooked(hook, {"a": "canary"}))
        assert sum(_guard.errors.values()) == 1

    def test_it_hangs(self):
        """If it does not come back, nobody waits for long, and after a few times not at all."""
        leave = threading.Event()

        def hook(value, place):
            leave.wait(20)
            return value

        try:
            start = time.monotonic()
            for _ in range(12):
                assert "canary" not in str(self.hooked(hook, {"a": "canary"}))
            assert time.monotonic() - start < 5
            late = list(_redact._late)
            assert len(late) == _redact._MOST_LATE
        finally:
            leave.set()
        for thread in late:
            thread.join(5)
        assert self.hooked(lambda value, _: value, {"a": "b"}) == {"a": "b"}

    def test_payloads_stay_objects(self):
        """What was an object and is none any more is put into one."""
        assert self.hooked(lambda *_: [1], {"a": 1}) == {"value": [1]}

    def test_an_item_is_kept_without_its_value(self):
        """A step whose values were removed is still recorded, and the ledger says so."""

        def hook(value, place):
            raise ValueError

        exporter = MemoryExporter()
        tracer = pt.configure(exporter=exporter, redact=hook)
        with pt.instance(), pt.span("step", payload={"a": "canary"}):
            pass
        ledger = tracer.shutdown()
        assert [each.started.payload for each in exporter.records if hasattr(each, "started")] == [
            b'{"$redacted":"by a callable that failed"}'
        ]
        assert ledger.notes == {"redact= failed, was late or gave no JSON: value removed": 1}


CANARIES = [*SHAPES.values(), *[text.format(secret) for text, secret in CONTEXTS.values()]]


def plant_everywhere():
    """Record a run with every canary in every place that takes a value."""

    @pt.span
    def step(text, nested, **headers):
        return {"result": text, "api_key": "canary-api", "list": [text, {"password": "canary-password"}]}

    @pt.span
    def stream(text):
        yield text
        yield {"cookie": "canary-cookie"}

    for text in CANARIES:
        with pt.instance(description=text, agent_name=text, external_identifier=text[:60]):
            step(text, [{"deep": {"er": text}}, json.dumps({"x": text})], authorization="canary-auth")
            list(stream(text))
            with pt.span("block", title=text, payload={"secret": "canary-secret", text: 1}) as span:
                span.set_payload(text)
                span.set_metadata({"token": "canary-token", "more": text})
                span.set_result([text])
                span.fail(text)
            with pytest.raises(ValueError), pt.span("error"):
                raise ValueError(text, {"passwd": "canary-passwd"})


def leaks(data):
    """Return which canaries are in *data*."""
    needles = [MIXED[4:20], "canary-", *[secret for _, secret in CONTEXTS.values()], *SHAPES.values()]
    ours = [each for each in needles if orjson.dumps(each)[1:-1] in data or each.encode() in data]
    return [each for each in ours if each != "aa bb" or b"aa bb" in data]


class TestEndToEnd:
    def test_spool_on_disk(self, tmp_path):
        """No byte on disk holds a canary."""
        tracer = pt.configure(exit_timeout=0)
        plant_everywhere()
        files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
        data = b"".join(path.read_bytes() for path in files)
        assert len(data) > 50_000
        assert leaks(data) == []
        tracer.shutdown(0)

    def test_file_exporter(self, tmp_path, caplog):
        """Nor does a line of a file, nor the log."""
        caplog.set_level(logging.DEBUG)
        path = tmp_path / "spans.jsonl"
        tracer = pt.configure(exporter=FileExporter(path))
        plant_everywhere()
        tracer.shutdown()
        assert path.stat().st_size > 50_000
        assert leaks(path.read_bytes()) == []
        assert leaks(caplog.text.encode()) == []

    def test_a_registration_is_searched_to_its_end(self):
        """However long that takes: cut off in the middle it would be refused, and the run be lost with all its spans."""
        text = "password=canary-password; " * 380
        body = {"agent_version": {"name": "bot", "description": text, "last": 1}}
        cut_off = orjson.loads(Redactor()(orjson.dumps(body)))
        assert cut_off["agent_version"].keys() - body["agent_version"].keys() == {"$redacted"}

        exporter = MemoryExporter()
        tracer = pt.configure(exporter=exporter, agent_name="bot")
        with pt.instance(description=text, external_identifier="token=canary-token-" + "x" * 20_000):
            pass
        tracer.shutdown()
        body = orjson.loads(exporter.records[0].body)
        assert body.keys() == {"external_identifier", "agent_version"}
        assert {"name", "description", "runtime_environment"} <= body["agent_version"].keys()
        assert "unsearched" not in exporter.records[0].body.decode()
        assert body["agent_version"]["description"].count("[redacted:") == 380
        assert leaks(orjson.dumps(body)) == []
        assert len(body["external_identifier"]) < 10_100

    def test_names_in_a_registration(self):
        """A field of a run that is called secret is left out; what says whose run it is has to be there."""
        exporter = MemoryExporter()
        keys = ["description", "external_identifier", "name", "agent_version", "id"]
        tracer = pt.configure(exporter=exporter, agent_name="bot", agent_id="an agent", redact_keys=keys)
        with pt.instance(description="the plan", external_identifier="customer 7", agent_version="1"):
            pass
        tracer.shutdown()
        body = orjson.loads(exporter.records[0].body)
        del body["agent_version"]["runtime_environment"]
        assert body == {"agent_id": "an agent", "agent_version": {"name": "bot", "external_identifier": "1"}}

    def test_local_platform(self, tmp_path):
        """Nor does anything that arrived over HTTP."""
        with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path) as platform:
            tracer = pt.configure(api_url=platform.url, api_token=platform.token)
            plant_everywhere()
            ledger = tracer.shutdown(10)
        assert ledger.dropped == {}
        assert ledger.pending == 0
        data = b"".join(path.read_bytes() for path in tmp_path.glob("platform.db*"))
        assert len(data) > 50_000
        assert leaks(data) == []
