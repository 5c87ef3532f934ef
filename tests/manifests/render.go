// Renders a Helm chart as `helm template` does, for tests where Helm is not to be had: Go's own text/template, and those
// of Helm's functions that this chart uses. `go run render.go CHART` reads {"Values", "Release", "Chart"} as JSON
// from standard input and writes the manifests; another function in a template is an error.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"text/template"
)

func main() {
	chart := os.Args[1]
	decoder := json.NewDecoder(os.Stdin)
	decoder.UseNumber()
	var data map[string]any
	must(decoder.Decode(&data))
	data = plain(data).(map[string]any)
	data["Template"] = map[string]any{"BasePath": "kvd/templates"}

	root := template.New("").Option("missingkey=zero")
	root.Funcs(functions(root))
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	must(err)
	sort.Strings(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(err)
		_, err = root.New("kvd/templates/" + filepath.Base(file)).Parse(string(text))
		must(err)
	}
	for _, file := range files {
		if filepath.Ext(file) != ".yaml" {
			continue
		}
		var out bytes.Buffer
		must(root.ExecuteTemplate(&out, "kvd/templates/"+filepath.Base(file), data))
		text := strings.ReplaceAll(out.String(), "<no value>", "")
		if strings.TrimSpace(text) != "" {
			fmt.Printf("---\n# Source: kvd/templates/%s\n%s\n", filepath.Base(file), strings.Trim(text, "\n"))
		}
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Numbers as Helm has them: integers where they are whole.
func plain(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key, inner := range value {
			value[key] = plain(inner)
		}
	case []any:
		for i, inner := range value {
			value[i] = plain(inner)
		}
	case json.Number:
		if n, err := value.Int64(); err == nil {
			return n
		}
		f, _ := value.Float64()
		return f
	}
	return value
}

func functions(root *template.Template) template.FuncMap {
	return template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var out bytes.Buffer
			err := root.ExecuteTemplate(&out, name, data)
			return out.String(), err
		},
		"default": func(otherwise any, given ...any) any {
			if len(given) == 0 || empty(given[0]) {
				return otherwise
			}
			return given[0]
		},
		"trunc": func(n int, text string) string {
			if len(text) > n {
				return text[:n]
			}
			return text
		},
		"trimSuffix": func(suffix, text string) string { return strings.TrimSuffix(text, suffix) },
		"trim":       strings.TrimSpace,
		"contains":   func(part, text string) bool { return strings.Contains(text, part) },
		"quote":      func(value any) string { return strconv.Quote(fmt.Sprint(value)) },
		"nindent": func(n int, text string) string {
			pad := strings.Repeat(" ", n)
			return "\n" + pad + strings.ReplaceAll(text, "\n", "\n"+pad)
		},
		"int":    func(value any) (int64, error) { return strconv.ParseInt(fmt.Sprint(value), 10, 64) },
		"until": func(n int64) []int64 {
			out := make([]int64, n)
			for i := range out {
				out[i] = int64(i)
			}
			return out
		},
		"list":   func(values ...any) []any { return values },
		"append": func(list []any, value any) []any { return append(append([]any{}, list...), value) },
		"uniq": func(list []any) []any {
			out, seen := []any{}, map[any]bool{}
			for _, value := range list {
				if !seen[value] {
					out, seen[value] = append(out, value), true
				}
			}
			return out
		},
		"has": func(value any, list []any) bool {
			for _, inner := range list {
				if reflect.DeepEqual(inner, value) {
					return true
				}
			}
			return false
		},
		"kindIs": func(kind string, value any) bool {
			return value != nil && reflect.TypeOf(value).Kind().String() == kind
		},
		"sha256sum": func(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) },
		"toJson": func(value any) (string, error) {
			text, err := json.Marshal(value)
			return string(text), err
		},
		"toYaml": func(value any) string { return strings.TrimSuffix(yaml(value, ""), "\n") },
	}
}

func empty(value any) bool {
	truth, _ := template.IsTrue(value)
	return !truth
}

// Block style, keys in order, as Helm's.
func yaml(value any, pad string) string {
	var out strings.Builder
	switch value := value.(type) {
	case map[string]any:
		keys := make([]string, 0, len(value))
		for key := range value {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			out.WriteString(pad + scalar(key) + ":" + beside(value[key], pad))
		}
	case []any:
		for _, inner := range value {
			text := beside(inner, pad)
			if strings.HasPrefix(text, "\n") {
				text = " " + strings.TrimPrefix(yaml(inner, pad+"  "), pad+"  ")
			}
			out.WriteString(pad + "-" + text)
		}
	default:
		return pad + scalar(value) + "\n"
	}
	return out.String()
}

// What follows a key: a scalar on its line, the rest below.
func beside(value any, pad string) string {
	switch inner := value.(type) {
	case map[string]any:
		if len(inner) == 0 {
			return " {}\n"
		}
		return "\n" + yaml(value, pad+"  ")
	case []any:
		if len(inner) == 0 {
			return " []\n"
		}
		return "\n" + yaml(value, pad)
	}
	return " " + scalar(value) + "\n"
}

// A text that reads as something else, or not at all, is quoted; JSON's quotes are YAML's.
func scalar(value any) string {
	text, isText := value.(string)
	if !isText {
		encoded, _ := json.Marshal(value)
		return string(encoded)
	}
	plainText := text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") == ""
	_, notNumber := strconv.ParseFloat(text, 64)
	switch strings.ToLower(text) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		plainText = false
	}
	if plainText && notNumber != nil && text[0] != '-' {
		return text
	}
	encoded, _ := json.Marshal(text)
	return string(encoded)
}
