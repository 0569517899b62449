//! Small chat templates and special tokens with the structure of those of known models.

/// A tokenizer's special tokens and template.
pub struct Family {
    pub name: &'static str,
    /// Tokens added to the vocabulary, and whether they are called special.
    pub added: &'static [(&'static str, bool)],
    pub bos: Option<&'static str>,
    pub eos: &'static str,
    /// `eos_token_id` of `generation_config.json`, as tokens.
    pub generation_eos: &'static [&'static str],
    pub template: &'static str,
}

const CHATML: &str = r"
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A system turn of its own where the conversation begins with none.
const CHATML_DEFAULT_SYSTEM: &str = r"
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

/// The reasoning of earlier answers is dropped, and the last one has a thinking block always.
const QWEN3: &str = r"
{%- set ns = namespace(last_query=messages|length - 1, found=false) %}
{%- for m in messages[::-1] %}
    {%- if not ns.found and m.role == 'user' %}
        {%- set ns.found = true %}
        {%- set ns.last_query = messages|length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

/// Every answer has a thinking block, and the generation prompt writes an empty one.
const MINIMIND_3: &str = r"
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if open_thinking is defined and open_thinking is true %}
        {{- '<think>\n' }}
    {%- else %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

const MINIMIND_2025: &str = r"
{%- if messages[0]['role'] == 'system' %}
    {{- '<s>system\n' + messages[0]['content'] + '</s>\n' }}
{%- else %}
    {{- '<s>system\nBe kind.</s>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}
        {{- '<s>user\n' + m['content'] + '</s>\n<s>assistant\n' }}
    {%- elif m['role'] == 'assistant' %}
        {{- m['content'] + '</s>' + '\n' }}
    {%- endif %}
{%- endfor %}";

const LLAMA_3: &str = r"
{%- for m in messages %}
    {%- set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}";

const GEMMA: &str = r"
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
    {{- '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// A text ends with `eos_token`, after the last turn only.
const PHI_3: &str = r"
{%- for m in messages %}
    {{- '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}";

const MISTRAL: &str = r"
{{- bos_token }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}
        {{- ' [INST] ' + m['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + m['content'] + eos_token }}
    {%- endif %}
{%- endfor %}";

/// An answer ends where the next role's token begins, and the last one with nothing.
const GLM: &str = r"
{{- '[gMASK]<sop>' }}
{%- for m in messages %}
    {{- '<|' + m['role'] + '|>\n' + m['content'] }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

const VICUNA: &str = r"
{{- 'A chat. ' }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}
        {{- 'USER: ' + m['content'] + ' ' }}
    {%- else %}
        {{- 'ASSISTANT: ' + m['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

/// One token after the last turn and another after the turns before it.
const LAST_DIFFERS: &str = r"
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content }}
    {{- '<|endoftext|>' if loop.last else '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const PLAIN: &str = r"
{%- for m in messages %}
    {{- ('### Human: ' if m['role'] == 'user' else '### Assistant: ') + m['content'] + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant: ' }}{% endif %}";

const SMOLVLM: &str = r"<|im_start|>
{%- for m in messages %}
    {{- m['role'] | capitalize }}
    {{- ':' if m['content'][0]['type'] == 'image' else ': ' }}
    {%- for part in m['content'] %}
        {%- if part['type'] == 'text' %}{{ part['text'] }}
        {%- elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}
    {%- endfor %}
    {{- '<end_of_utterance>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

const CHATML_TOKENS: &[(&str, bool)] =
    &[("<|endoftext|>", true), ("<|im_start|>", true), ("<|im_end|>", true)];

const THINKING_TOKENS: &[(&str, bool)] = &[
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<think>", false),
    ("</think>", false),
];

pub const FAMILIES: &[Family] = &[
    Family {
        name: "SmolLM2",
        added: CHATML_TOKENS,
        bos: Some("<|im_start|>"),
        eos: "<|im_end|>",
        generation_eos: &["<|im_end|>"],
        template: CHATML_DEFAULT_SYSTEM,
    },
    Family {
        name: "SmolLM2's template, eos <|endoftext|>",
        added: CHATML_TOKENS,
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &[],
        template: CHATML,
    },
    Family {
        name: "Qwen2.5 base",
        added: CHATML_TOKENS,
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &["<|endoftext|>"],
        template: CHATML_DEFAULT_SYSTEM,
    },
    Family {
        name: "Qwen2.5 instruct",
        added: CHATML_TOKENS,
        bos: None,
        eos: "<|im_end|>",
        generation_eos: &["<|im_end|>", "<|endoftext|>"],
        template: CHATML_DEFAULT_SYSTEM,
    },
    Family {
        name: "Qwen3 base",
        added: THINKING_TOKENS,
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &["<|endoftext|>"],
        template: QWEN3,
    },
    Family {
        name: "Qwen3 instruct",
        added: THINKING_TOKENS,
        bos: None,
        eos: "<|im_end|>",
        generation_eos: &["<|im_end|>", "<|endoftext|>"],
        template: QWEN3,
    },
    Family {
        name: "Llama 3",
        added: &[
            ("<|begin_of_text|>", true),
            ("<|end_of_text|>", true),
            ("<|start_header_id|>", true),
            ("<|end_header_id|>", true),
            ("<|eot_id|>", true),
        ],
        bos: Some("<|begin_of_text|>"),
        eos: "<|eot_id|>",
        generation_eos: &["<|end_of_text|>", "<|eot_id|>"],
        template: LLAMA_3,
    },
    Family {
        name: "Gemma",
        added: &[
            ("<bos>", true),
            ("<eos>", true),
            ("<start_of_turn>", true),
            ("<end_of_turn>", true),
            ("\n", false),
        ],
        bos: Some("<bos>"),
        eos: "<eos>",
        generation_eos: &["<eos>", "<end_of_turn>"],
        template: GEMMA,
    },
    Family {
        name: "Phi-3",
        added: &[
            ("<|endoftext|>", true),
            ("<|user|>", true),
            ("<|assistant|>", true),
            ("<|end|>", true),
        ],
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &["<|endoftext|>", "<|end|>", "<|user|>"],
        template: PHI_3,
    },
    Family {
        name: "ChatML, <|im_end|> not special",
        added: &[("<|endoftext|>", true), ("<|im_start|>", false), ("<|im_end|>", false)],
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &[],
        template: CHATML,
    },
    Family {
        name: "ChatML, last turn differs",
        added: CHATML_TOKENS,
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &[],
        template: LAST_DIFFERS,
    },
    Family {
        name: "Mistral",
        added: &[("<s>", true), ("</s>", true)],
        bos: Some("<s>"),
        eos: "</s>",
        generation_eos: &["</s>"],
        template: MISTRAL,
    },
    Family {
        name: "Vicuna",
        added: &[("<s>", true), ("</s>", true)],
        bos: Some("<s>"),
        eos: "</s>",
        generation_eos: &[],
        template: VICUNA,
    },
    Family {
        name: "GLM-4",
        added: &[
            ("<|endoftext|>", true),
            ("[gMASK]", true),
            ("<sop>", true),
            ("<|user|>", true),
            ("<|assistant|>", true),
        ],
        bos: None,
        eos: "<|endoftext|>",
        generation_eos: &["<|endoftext|>", "<|user|>"],
        template: GLM,
    },
    Family {
        name: "plain text",
        added: &[("</s>", true)],
        bos: None,
        eos: "</s>",
        generation_eos: &[],
        template: PLAIN,
    },
    Family {
        name: "SmolVLM",
        added: &[("<|im_start|>", true), ("<end_of_utterance>", true), ("<image>", true)],
        bos: Some("<|im_start|>"),
        eos: "<end_of_utterance>",
        generation_eos: &[],
        template: SMOLVLM,
    },
    Family {
        name: "MiniMind, April 2025",
        added: &[("<unk>", true), ("<s>", true), ("</s>", true)],
        bos: Some("<s>"),
        eos: "</s>",
        generation_eos: &[],
        template: MINIMIND_2025,
    },
    Family {
        name: "minimind-3",
        added: THINKING_TOKENS,
        bos: Some("<|im_start|>"),
        eos: "<|im_end|>",
        generation_eos: &[],
        template: MINIMIND_3,
    },
];
